"""The filter on the kernel that is here: what must be refused is, what must work does.

Each test runs a program of its own through ``under_filter.py``; nothing but the filter stands
between it and the kernel, so a refusal seen here is the filter's. What a program meets in each
backend's sandbox is in ``test_seccomp_backends.py``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from code_executor.sandbox import seccomp
from code_executor.sandbox.seccomp_probes import MUST_ALLOW, MUST_REFUSE, Probe, as_python

HELPER = Path(__file__).with_name("under_filter.py")
Filtered = Callable[..., "subprocess.CompletedProcess[str]"]

on_x86_64 = pytest.mark.skipif(os.uname().machine != "x86_64", reason="x86-64 machine code")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped filter, compiled for this host."""
    path = tmp_path_factory.mktemp("filter") / "default.bpf"
    path.write_bytes(seccomp.compile(seccomp.load(seccomp.default_path())))
    return path


@pytest.fixture
def filtered(program: Path, tmp_path: Path) -> Filtered:
    """Run an argument vector under the filter, in an empty directory."""

    def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        executable = shutil.which(argv[0])
        if executable is None:
            pytest.skip(f"{argv[0]} is not installed")
        return subprocess.run(
            [sys.executable, "-I", str(HELPER), str(program), executable, *argv[1:]],
            cwd=tmp_path,
            env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), **env},
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
        )

    return run


def assert_ran(done: subprocess.CompletedProcess[str], output: str) -> None:
    assert (done.returncode, done.stdout.strip()) == (0, output), done.stderr


@pytest.mark.parametrize("probes", [MUST_REFUSE, MUST_ALLOW], ids=["refused", "allowed"])
def test_the_probes_get_their_answer(filtered: Filtered, probes: tuple[Probe, ...]) -> None:
    assert_ran(filtered(sys.executable, "-I", "-c", as_python(probes)), "probed")


_MACHINE_CODE = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("{code}"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print("returned", ctypes.CFUNCTYPE(ctypes.c_int)(address)())
"""


@on_x86_64
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("b814000000 cd80 c3", id="int 0x80: getpid of i386"),
        pytest.param("b827000040 0f05 c3", id="x32: getpid"),
    ],
)
def test_another_calling_convention_kills(filtered: Filtered, code: str) -> None:
    done = filtered(sys.executable, "-I", "-c", _MACHINE_CODE.format(code=code))
    assert (done.returncode, done.stdout) == (-signal.SIGSYS, "")


@on_x86_64
def test_the_native_convention_returns(filtered: Filtered) -> None:
    # The counterpart of the test above: the machine code itself is fine.
    done = filtered(sys.executable, "-I", "-c", _MACHINE_CODE.format(code="b827000000 0f05 c3"))
    assert done.stdout.startswith("returned "), done.stderr


def test_the_filter_stays_on_a_child_and_across_exec(filtered: Filtered) -> None:
    script = 'true; "$0" -I -c "$1"; exec "$0" -I -c "$1"'
    done = filtered("sh", "-c", script, sys.executable, as_python(MUST_REFUSE))
    assert_ran(done, "probed\nprobed")


_PYTHON = """
import asyncio, concurrent.futures, fcntl, mmap, multiprocessing, os, pty, shutil, signal, socket
import sqlite3, subprocess, tempfile, threading
from multiprocessing import shared_memory

def square(x):
    return x * x

async def network():
    server = await asyncio.start_server(lambda r, w: (w.write(b"x"), w.close()), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b"x"
    writer.close()
    server.close()
    child = await asyncio.create_subprocess_exec("echo", "hi", stdout=subprocess.PIPE)
    assert (await child.communicate())[0] == b"hi\\n"
    await asyncio.to_thread(square, 2)

def main():
    threads = [threading.Thread(target=square, args=(n,)) for n in range(8)]
    [t.start() for t in threads], [t.join() for t in threads]
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert pool.map(square, [1, 2, 3]) == [1, 4, 9]
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        assert list(pool.map(square, [2])) == [4]
    memory = shared_memory.SharedMemory(create=True, size=64)
    memory.close(), memory.unlink()
    asyncio.run(network())
    assert subprocess.check_output("echo a | cat | wc -c", shell=True).strip() == b"2"
    with mmap.mmap(-1, 4096) as area:
        area[:3] = b"abc"
        area.flush()
    os.mkdir("d")
    base = sqlite3.connect("d/base")
    base.execute("pragma journal_mode = wal")
    base.execute("create table t (a)")
    base.commit(), base.close()
    shutil.copy2("d/base", "d/copy"), shutil.copytree("d", "e"), os.mkfifo("e/fifo"), os.sync()
    with open("d/copy", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    with tempfile.TemporaryFile() as file:
        fcntl.lockf(file, fcntl.LOCK_EX), file.truncate(10), os.posix_fallocate(file.fileno(), 0, 9)
    shutil.rmtree("d"), shutil.rmtree("e")
    socket.if_nameindex(), socket.getaddrinfo("127.0.0.1", 80), socket.socketpair()
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pty.spawn(["true"], lambda fd: os.read(fd, 1), lambda fd: b"")
    os.sched_setaffinity(0, os.sched_getaffinity(0)), os.nice(1), os.memfd_create("m")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    os.kill(os.getpid(), signal.SIGUSR1)
    signal.sigwait([signal.SIGUSR1])
    os.close(os.pidfd_open(os.getpid()))
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    print("ok")

if __name__ == "__main__":
    main()
"""

_NODE = """
const os = require('os'), fs = require('fs'), net = require('net');
const { execSync } = require('child_process'), { Worker } = require('worker_threads');
os.networkInterfaces(); os.cpus(); os.userInfo(); process.memoryUsage();
require('crypto').randomBytes(4);
fs.writeFileSync('a', 'text'); fs.copyFileSync('a', 'b'); fs.cpSync('b', 'c');
fs.watchFile('a', () => {}); fs.unwatchFile('a');
if (execSync('echo hi').toString() !== 'hi\\n') process.exit(1);
const udp = require('dgram').createSocket('udp4');
udp.bind(0, '127.0.0.1', () => udp.close());
const worker = new Promise((done, fail) => new Worker(
  "require('worker_threads').parentPort.postMessage(1)", { eval: true })
  .on('message', done).on('error', fail));
const tcp = new Promise((done) => {
  const server = net.createServer((c) => { c.setNoDelay(true); c.setKeepAlive(true); c.end('x'); });
  server.listen(0, '127.0.0.1', () => net.connect(server.address().port, '127.0.0.1')
    .on('data', () => { server.close(); done(); }));
});
const wasm = WebAssembly.compile(new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0]));
Promise.all([worker, tcp, wasm, fs.promises.readFile('b')]).then(() => console.log('ok'));
"""

_RUBY = """
require 'socket'; require 'open3'; require 'tempfile'; require 'fileutils'; require 'pty'
Socket.getifaddrs; Socket.ip_address_list; UNIXSocket.pair
Thread.new { 1 }.join
Process.wait(fork { exit 3 }); raise 'fork' unless $?.exitstatus == 3
raise 'open3' unless Open3.capture2('cat', stdin_data: 'x')[0] == 'x'
server = TCPServer.new('127.0.0.1', 0)
thread = Thread.new { server.accept.close }
TCPSocket.new('127.0.0.1', server.addr[1]).read; thread.join
Tempfile.create('t', '.') { |f| f.flock(File::LOCK_EX); f.puts 1; FileUtils.cp(f.path, 'copy') }
Warning[:experimental] = false
raise 'ractor' unless Ractor.new { 7 }.take == 7
PTY.spawn('true') { |_, _, pid| Process.wait(pid) }
GC.start; GC.compact if GC.respond_to?(:compact)
puts 'ok'
"""

_PHP = """<?php
$child = proc_open(['cat'], [['pipe', 'r'], ['pipe', 'w']], $pipes);
fwrite($pipes[0], 'x'); fclose($pipes[0]);
if (stream_get_contents($pipes[1]) !== 'x') exit(1);
proc_close($child);
if (shell_exec('echo hi') !== "hi\\n") exit(2);
file_put_contents('a', 'text', LOCK_EX); copy('a', 'b'); rename('b', 'c'); unlink('c');
$server = stream_socket_server('tcp://127.0.0.1:0');
$client = stream_socket_client('tcp://' . stream_socket_get_name($server, false));
if (!$client) exit(3);
gethostbyname('localhost'); random_int(0, 9); stream_isatty(STDOUT); usleep(10);
if (function_exists('pcntl_fork')) { $pid = pcntl_fork(); if (!$pid) exit(0); pcntl_wait($s); }
if (function_exists('sem_get')) {
    $s = sem_get(ftok(__FILE__, 'a')); sem_acquire($s); sem_remove($s);
}
echo 'ok';
"""

_GO = """
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"sync"
	"time"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	_, err := net.Interfaces()
	must(err)
	var group sync.WaitGroup
	for i := 0; i < 50; i++ {
		group.Add(1)
		go func() { defer group.Done(); time.Sleep(time.Millisecond) }()
	}
	group.Wait()
	must(exec.Command("true").Run())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	go func() {
		c, _ := listener.Accept()
		f, _ := os.Open("main.go")
		io.Copy(c, f)
		c.Close()
	}()
	c, err := net.Dial("tcp", listener.Addr().String())
	must(err)
	out, err := os.Create("copy")
	must(err)
	n, err := io.Copy(out, c)
	must(err)
	if n == 0 {
		panic("nothing came")
	}
	fmt.Println("ok")
}
"""


@pytest.mark.parametrize(
    ("interpreter", "name", "source"),
    [
        pytest.param("python3", "main.py", _PYTHON, id="python"),
        pytest.param("node", "main.js", _NODE, id="node"),
        pytest.param("ruby", "main.rb", _RUBY, id="ruby"),
        pytest.param("php", "main.php", _PHP, id="php"),
    ],
)
def test_an_honest_program_works(
    filtered: Filtered, tmp_path: Path, interpreter: str, name: str, source: str
) -> None:
    (tmp_path / name).write_text(source)
    assert_ran(filtered(interpreter, name), "ok")


def test_the_go_toolchain_and_its_program_work(filtered: Filtered, tmp_path: Path) -> None:
    (tmp_path / "main.go").write_text(_GO)
    (tmp_path / "go.mod").write_text("module main\n\ngo 1.19\n")
    built = filtered("go", "build", "-o", "program", ".", GOFLAGS="-p=2", GOPROXY="off")
    assert built.returncode == 0, built.stderr
    assert_ran(filtered(str(tmp_path / "program")), "ok")
