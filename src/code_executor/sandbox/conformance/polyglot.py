"""The essentials again for every language but Python."""

from __future__ import annotations

from dataclasses import dataclass, replace

from code_executor.model import LimitHit, Phase, StagedFile
from code_executor.ports import Backend
from code_executor.sandbox.conformance.bench import (
    FAILED,
    OOM,
    SUCCEEDED,
    TIMEOUT,
    carry_out,
    ended,
    expect,
    plan,
    printed,
    run,
)
from code_executor.sandbox.conformance.registry import Body, Check, add, check


@dataclass(frozen=True, slots=True)
class Dialect:
    """The same small programs in one language."""

    hello: str
    echo: str
    """Prints the first argument, the variable NAME, and stdin, a line each."""
    fails: str
    """Writes to stderr and exits with 137."""
    spins: str
    """Prints ``begin``, then burns CPU without end."""
    sleeps: str
    """Prints ``begin``, then sleeps."""
    hoards: str
    """Takes memory without end."""
    writes: str
    """Copies inputs/in.bin to outputs/out.bin."""
    connects: str
    """Prints ``held`` when no connection to 127.0.0.1:8080 and 1.1.1.1:53 can be had."""
    reads: str
    """Prints ``held`` when /etc/shadow and /root cannot be read and / cannot be written."""


NODE = Dialect(
    hello="console.log('hello, wörld')",
    echo="console.log(process.argv[2]); console.log(process.env.NAME);"
    " console.log(require('fs').readFileSync(0, 'utf8'))",
    fails="console.error('bad'); process.exitCode = 137",
    spins="console.log('begin'); while (true);",
    sleeps="console.log('begin'); setTimeout(() => {}, 60000)",
    hoards="const a = []; for (;;) a.push(Buffer.alloc(1 << 20, 1))",
    writes="const fs = require('fs'); fs.copyFileSync('inputs/in.bin', 'outputs/out.bin')",
    connects="""
        const net = require("net");
        const go = (port, host) => new Promise((r) => {
          const s = net.connect({ port, host, timeout: 500 });
          s.on("error", () => r(0)); s.on("timeout", () => r(0)); s.on("connect", () => r(1)); });
        (async () => { const n = await go(8080, "127.0.0.1") + await go(53, "1.1.1.1");
          console.log(n ? "reached" : "held"); process.exit(0); })();
    """,
    reads="""
        const fs = require("fs"); let n = 0;
        const go = (f) => { try { f(); n++; } catch {} };
        go(() => fs.readFileSync("/etc/shadow"));
        go(() => { if (!fs.readdirSync("/root").length) throw 0; });
        go(() => fs.writeFileSync("/x", "x")); go(() => fs.writeFileSync("/usr/x", "x"));
        console.log(n ? "reached" : "held");
    """,
)
RUBY = Dialect(
    hello="puts 'hello, wörld'",
    echo="puts ARGV[0], ENV['NAME'], $stdin.read",
    fails="warn 'bad'; exit 137",
    spins="puts 'begin'; $stdout.flush; loop {}",
    sleeps="puts 'begin'; $stdout.flush; sleep",
    hoards="a = []; loop { a << 'x' * 1_000_000 }",
    writes="File.binwrite('outputs/out.bin', File.binread('inputs/in.bin'))",
    connects="""
        require "socket"
        n = [["127.0.0.1", 8080], ["1.1.1.1", 53]].count do |host, port|
          Socket.tcp(host, port, connect_timeout: 0.5) { true } rescue false
        end
        puts n > 0 ? "reached" : "held"
    """,
    reads="""
        n = [-> { File.read("/etc/shadow") }, -> { raise if Dir.children("/root").empty? },
             -> { File.write("/x", "x") }, -> { File.write("/usr/x", "x") }].count do |f|
          f.call
          true
        rescue SystemCallError, RuntimeError
          false
        end
        puts n > 0 ? "reached" : "held"
    """,
)
PHP = Dialect(
    hello='<?php echo "hello, wörld\\n";',
    echo='<?php echo $argv[1], "\\n", getenv("NAME"), "\\n", stream_get_contents(STDIN), "\\n";',
    fails='<?php fwrite(STDERR, "bad\\n"); exit(137);',
    spins='<?php echo "begin\\n"; while (true);',
    sleeps='<?php echo "begin\\n"; sleep(60);',
    hoards='<?php ini_set("memory_limit", -1); while (true) $a[] = str_repeat("x", 1000000);',
    writes='<?php copy("inputs/in.bin", "outputs/out.bin");',
    connects="""<?php
        $n = 0;
        foreach ([["127.0.0.1", 8080], ["1.1.1.1", 53]] as [$h, $p])
            if (@fsockopen($h, $p, $e, $m, 0.5)) $n++;
        echo $n ? "reached" : "held", "\\n";
    """,
    reads="""<?php
        $n = @file_get_contents("/etc/shadow") || count(@scandir("/root") ?: []) > 2
          || @file_put_contents("/x", "x") || @file_put_contents("/usr/x", "x");
        echo $n ? "reached" : "held", "\\n";
    """,
)


def _go(imports: str, body: str) -> str:
    lines = "\n".join(f'\t"{name}"' for name in imports.split())
    return f"package main\n\nimport (\n{lines}\n)\n\nfunc main() {{\n{body}\n}}\n"


GO = Dialect(
    hello=_go("fmt", 'fmt.Println("hello, wörld")'),
    echo=_go("fmt io os", 'b, _ := io.ReadAll(os.Stdin); fmt.Println(os.Args[1]); '
             'fmt.Println(os.Getenv("NAME")); fmt.Println(string(b))'),
    fails=_go("os", 'os.Stderr.WriteString("bad\\n"); os.Exit(137)'),
    spins=_go("fmt", 'fmt.Println("begin"); for {}'),
    sleeps=_go("fmt time", 'fmt.Println("begin"); time.Sleep(time.Minute)'),
    hoards=_go("", "var a [][]byte; for { b := make([]byte, 1<<20); for i := range b { b[i] = 1 }; "
               "a = append(a, b) }; _ = a"),
    writes=_go("os", 'b, _ := os.ReadFile("inputs/in.bin"); '
               'os.WriteFile("outputs/out.bin", b, 0o644)'),
    connects=_go("fmt net time", """n := 0
        for _, a := range []string{"127.0.0.1:8080", "1.1.1.1:53"} {
            if _, err := net.DialTimeout("tcp", a, time.Second/2); err == nil { n++ }
        }
        if n > 0 { fmt.Println("reached") } else { fmt.Println("held") }"""),
    reads=_go("fmt os", """n := 0
        if _, err := os.ReadFile("/etc/shadow"); err == nil { n++ }
        if es, _ := os.ReadDir("/root"); len(es) > 0 { n++ }
        if os.WriteFile("/x", nil, 0o644) == nil { n++ }
        if os.WriteFile("/usr/x", nil, 0o644) == nil { n++ }
        if n > 0 { fmt.Println("reached") } else { fmt.Println("held") }"""),
)  # fmt: skip
LONG = {"timeout_ms": 60_000, "cpu_ms": 60_000}
"""Limits that are not what a check is about, on the slowest host."""
DIALECTS = {"node": NODE, "ruby": RUBY, "php": PHP, "go": GO}


async def _cost(backend: Backend, language: str, dialect: Dialect) -> int:
    """Twice what the smallest program takes on this host, compiling included, in milliseconds."""
    usage = (await run(backend, language, dialect.hello, **LONG)).usage
    return 2 * max(usage.wall_ms, usage.cpu_ms)


async def _hello(backend: Backend, language: str, dialect: Dialect) -> None:
    """Prints and succeeds."""
    printed(await run(backend, language, dialect.hello), "hello, wörld\n")


async def _echo(backend: Backend, language: str, dialect: Dialect) -> None:
    """Gets arguments, environment and stdin."""
    given = {"args": ("a 'b' ü",), "env": {"NAME": "värde"}, "stdin": "line one\nline two"}
    outcome = await run(backend, language, dialect.echo, **given)
    printed(outcome, "a 'b' ü\nvärde\nline one\nline two\n")


async def _exit_code(backend: Backend, language: str, dialect: Dialect) -> None:
    """Fails with its own exit code and stderr."""
    outcome = await run(backend, language, dialect.fails)
    ended(outcome, FAILED, exit_code=137, phase=Phase.RUN, limit_hit=None)
    expect(outcome.stderr.data == b"bad\n", "stderr", outcome)


async def _wall_clock(backend: Backend, language: str, dialect: Dialect) -> None:
    """Ends at its deadline."""
    deadline = 1_000 + await _cost(backend, language, dialect)
    outcome = await run(backend, language, dialect.sleeps, timeout_ms=deadline)
    ended(outcome, TIMEOUT, limit_hit=LimitHit.WALL)
    expect(outcome.stdout.data == b"begin\n", "partial output lost", outcome)


async def _cpu_clock(backend: Backend, language: str, dialect: Dialect) -> None:
    """Ends at its CPU limit."""
    limit = 800 + await _cost(backend, language, dialect)
    outcome = await run(backend, language, dialect.spins, **{**LONG, "cpu_ms": limit})
    ended(outcome, TIMEOUT, limit_hit=LimitHit.CPU)
    expect(outcome.stdout.data == b"begin\n", "partial output lost", outcome)


async def _memory(backend: Backend, language: str, dialect: Dialect) -> None:
    """Ends when it takes too much memory."""
    outcome = await run(backend, language, dialect.hoards, memory_mb=200, **LONG)
    ended(outcome, OOM, limit_hit=LimitHit.MEMORY)


async def _files(backend: Backend, language: str, dialect: Dialect) -> None:
    """Reads input files and makes artifacts."""
    data = bytes(range(256)) * 100
    outcome = await run(backend, language, dialect.writes, files={"in.bin": data})
    ended(outcome, SUCCEEDED)
    found = {item.name: item.content for item in outcome.artifacts}
    expect(found == {"out.bin": data}, f"came back: {sorted(found)}", outcome)


async def _network(backend: Backend, language: str, dialect: Dialect) -> None:
    """Reaches no network."""
    printed(await run(backend, language, dialect.connects, timeout_ms=10_000), "held\n")


async def _host_files(backend: Backend, language: str, dialect: Dialect) -> None:
    """Reads and writes no file of the host."""
    printed(await run(backend, language, dialect.reads), "held\n")


_EVERY = (
    ("P8", _hello), ("P8", _echo), ("P8", _exit_code), ("P3", _wall_clock), ("P4", _cpu_clock),
    ("P4", _memory), ("P5", _files), ("P1", _network), ("P1", _host_files),
)  # fmt: skip


def _bind(language: str, body: object) -> Body:
    async def bound(backend: Backend) -> None:
        await body(backend, language, DIALECTS[language])  # type: ignore[operator]  # one of _EVERY

    return bound


for _language in DIALECTS:
    for _promise, _body in _EVERY:
        _name = f"polyglot.{_language}{_body.__name__}"
        _title = f"{_language}: {(_body.__doc__ or '').rstrip('.').lower()}"
        add(Check(_name, _title, _promise, _language, _bind(_language, _body)))


@check("P8", language="go")
async def go_compile_errors(backend: Backend) -> None:
    """A program that does not compile has failed in that phase, with the compiler's words."""
    outcome = await run(backend, "go", "package main\n\nfunc main() { undefined() }\n")
    ended(outcome, FAILED, phase=Phase.COMPILE)
    expect(outcome.exit_code not in (0, None), "exit code", outcome)
    expect(b"./main.go:3:15: undefined: undefined" in outcome.stderr.data, "stderr", outcome)


@check("P4", language="go")
async def compiling_is_limited_too(backend: Backend) -> None:
    """A program made to be slow to compile ends by its limits, in the compile phase."""
    lines = "\n".join(f"var x{i} = [...]string{{{', '.join(['`abc`'] * 200)}}}" for i in range(700))
    code = f"package main\n\n{lines}\n\nfunc main() {{}}\n"
    outcome = await run(backend, "go", code, timeout_ms=300, cpu_ms=300)
    ended(outcome, TIMEOUT, phase=Phase.COMPILE)


@check("P7", language="go")
async def the_compiler_hears_nothing(backend: Backend) -> None:
    """Variables that steer the compiler are not the caller's."""
    given = {"GOFLAGS": "-toolexec=/work/inputs/evil", "CGO_ENABLED": "1", "GOROOT": "/work"}
    outcome = await run(backend, "go", GO.hello, env=given)
    printed(outcome, "hello, wörld\n")


@check("P8", language="go")
async def compile_time_is_told(backend: Backend) -> None:
    """The time of compiling is part of the wall time and told apart."""
    usage = (await run(backend, "go", GO.hello)).usage
    expect(usage.compile_ms is not None, "compile_ms is not told")
    expect(
        0 < (usage.compile_ms or 0) <= usage.wall_ms,
        f"compile_ms {usage.compile_ms} of {usage.wall_ms}",
    )


@check("P8", language="go")
async def what_was_built_runs_again(backend: Backend) -> None:
    """The compiler's work is handed out, and runs in another sandbox without being compiled."""
    first = plan("go", GO.hello)
    built = (await carry_out(backend, first)).built
    expect(built, "nothing was handed out")
    again = replace(
        first,
        flavour=first.built_flavour or first.flavour,
        warm=False,
        steps=first.steps[-1:],
        files=(*first.files, StagedFile(first.builds, built or b"", executable=True)),
        builds="",
    )
    outcome = await carry_out(backend, again)
    printed(outcome, "hello, wörld\n")
    expect(outcome.usage.compile_ms is None, f"compiled again in {outcome.usage.compile_ms} ms")


@check("P1", language="node")
async def node_options_are_dropped(backend: Backend) -> None:
    """NODE_OPTIONS does not reach the interpreter."""
    given = {"NODE_OPTIONS": "--require /work/inputs/evil.js"}
    outcome = await run(
        backend, "node", NODE.hello, env=given, files={"evil.js": b"console.log(1)"}
    )
    printed(outcome, "hello, wörld\n")


@check("P1", language="ruby")
async def ruby_options_are_dropped(backend: Backend) -> None:
    """RUBYOPT does not reach the interpreter."""
    given = {"RUBYOPT": "-r/work/inputs/evil"}
    outcome = await run(backend, "ruby", RUBY.hello, env=given, files={"evil.rb": b"puts 1"})
    printed(outcome, "hello, wörld\n")


@check("P1", language="php")
async def php_configuration_is_dropped(backend: Backend) -> None:
    """PHPRC and PHP_INI_SCAN_DIR do not reach the interpreter."""
    given = {"PHPRC": "/work/inputs", "PHP_INI_SCAN_DIR": "/work/inputs"}
    files = {"php.ini": b"auto_prepend_file=/work/inputs/evil.php", "evil.php": b"evil"}
    printed(await run(backend, "php", PHP.hello, env=given, files=files), "hello, wörld\n")
