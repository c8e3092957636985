'use strict';
// Preloaded (node -r) into an interpreter that is started ahead. It waits here for its job and then
// returns, and Node goes on to load /work/main.js as it always does. What the job is: init/init.c. It
// waits in / (languages/node.toml says why).
const fs = require('fs');

const GO = 3;

// The first console.log of a program loads and compiles what a stream over a pipe needs: 4 ms. It is
// done here, over a handle that is none, so that no descriptor is opened; Console and destroy() are
// not used, because they would make process.stderr. The callbacks that wait for the next tick are
// run, so that none is left to the program. Where a version of Node wants another handle, nothing
// is gained and nothing lost.
function warmUp() {
  try {
    const net = require('net');
    const { formatWithOptions } = require('util');
    require('tty');
    const done = () => 0;
    const handle = { getAsyncId: done, close() {}, writeUtf8String: done, writev: done };
    const stream = new net.Socket({ handle, readable: false, writable: true });
    stream.on('error', done);
    stream.write(`${formatWithOptions({}, '%s %o', '', {})}\n`, done);
    process._tickCallback();
  } catch {
    // as said
  }
}

function receive() {
  const pieces = [];
  const buffer = Buffer.allocUnsafe(65536);
  fs.writeSync(GO, Buffer.alloc(1)); // ready
  for (;;) {
    const size = fs.readSync(GO, buffer, 0, buffer.length, null);
    if (size === 0) break;
    pieces.push(Buffer.from(buffer.subarray(0, size)));
  }
  fs.closeSync(GO);
  if (pieces.length === 0) process.exit(0);
  return Buffer.concat(pieces).toString('utf8').split('\0').slice(0, -1);
}

function apply([count, ...rest]) {
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
  warmUp();
  apply(receive());
  process.chdir('/work');
}
