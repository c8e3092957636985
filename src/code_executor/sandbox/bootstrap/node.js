'use strict';
// Preloaded (node -r) into an interpreter that is started ahead. It waits here for its job and then
// returns, and Node goes on to load /work/main.js as it always does. What the job is: init/init.c. It
// waits in / (languages/node.toml says why).
const fs = require('fs');

const GO = 3;

// What is executed here once needs no compiling when the program comes. The first console.log loads
// and compiles what a stream over a pipe needs: 4 ms. It is done over a handle that is none, so that
// no descriptor is opened, and with colours decided, because asking would make process.stderr. The
// callbacks that wait for the next tick are run, so that none is left to the program. /dev/null is
// no stream and there is no such main file: both are refused, and nothing remembers them. Where a
// version of Node wants something else, nothing is gained and nothing lost.
function attempt(step) {
  try {
    step();
  } catch {
    // as said
  }
}

function warmUp() {
  attempt(() => {
    const net = require('net');
    const { Console } = require('console');
    require('tty');
    const done = () => 0;
    const handle = { getAsyncId: done, close() {}, writeUtf8String: done, writev: done };
    const stream = new net.Socket({ handle, readable: false, writable: true });
    new Console({ stdout: stream, stderr: stream, colorMode: false }).log('%s %o', '', {});
    stream.on('error', done);
    process._tickCallback();
  });
  attempt(() => {
    const { Socket } = require('net');
    const fd = fs.openSync('/dev/null');
    attempt(() => new Socket({ fd }));
    fs.closeSync(fd);
  });
  attempt(() => require('module').runMain('/opt/ahead/none'));
  apply(parse([Buffer.from(Buffer.from('2\0' + '0\0').subarray(0))]));
  process.chdir(process.cwd());
}

function parse(pieces) {
  return Buffer.concat(pieces).toString('utf8').split('\0').slice(0, -1);
}

function receive() {
  const pieces = [];
  const buffer = Buffer.allocUnsafe(65536);
  let left = 1; // known when the first piece is here
  fs.writeSync(GO, Buffer.alloc(1)); // ready
  while (left > 0) {
    const size = fs.readSync(GO, buffer, 0, buffer.length, null);
    if (size === 0) break;
    if (pieces.length === 0) left = buffer.indexOf(0) + 1 + parseInt(buffer.latin1Slice(0, 24), 10);
    left -= size;
    pieces.push(Buffer.from(buffer.subarray(0, size)));
  }
  fs.closeSync(GO);
  if (left > 0) process.exit(0);
  return parse(pieces);
}

function apply([, count, ...rest]) {
  process.argv.push(...rest.slice(0, Number(count)));
  for (const pair of rest.slice(Number(count))) {
    const at = pair.indexOf('=');
    const name = pair.slice(0, at);
    const value = pair.slice(at + 1);
    if (process.env[name] !== value) process.env[name] = value;
  }
}

// A worker thread preloads too, and has nothing to wait for.
if (require('worker_threads').isMainThread) {
  // Stay invisible: no trace in the options that child processes inherit, nor among the modules.
  process.execArgv.length = 0;
  delete require.cache[__filename];
  require('module')._pathCache = Object.create(null);
  attempt(() => process.dlopen({ exports: {} }, '/opt/ahead/node.so')); // init/node_end.c
  warmUp();
  apply(receive());
  process.chdir('/work');
}
