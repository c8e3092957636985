"""An interpreter started ahead shows nothing of it: what a program can see of itself is compared
with what it sees in a fresh interpreter, in the same sandbox."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import replace

import pytest

from code_executor.model import RunStatus
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.native import NativeBackend

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="module")]

ARGS, ENV, STDIN = ("a", "-b", ""), {"OWN": "1"}, "some input"

LOOKS = {
    "python": """
        import os, subprocess, sys, threading
        print(sys.argv, sys.orig_argv, sys.path, sys.flags, sorted(os.environ.items()))
        print(__name__, __file__, __builtins__.__name__, sys.stdin.read(), sorted(globals()))
        print(sorted(os.listdir('/proc/self/fd')), threading.active_count(), os.umask(0))
        print(sys.stdout.line_buffering, sys.stdout.encoding, sys.excepthook, sys.gettrace())
        print(sorted(os.listdir('/work')), os.listdir('/tmp'), os.getpgid(0) == os.getsid(0))
        print(subprocess.run(['sh', '-c', 'env | sort; ls -l /proc/self/fd | wc -l'],
                             capture_output=True, text=True).stdout)
    """,
    "node": """
        const fs = require('fs'), child = require('child_process');
        console.log(process.argv, process.execArgv, process.argv0, process.title, process.env);
        console.log(__filename, require.main === module, module.paths, module.children.length);
        console.log(Object.keys(require.cache), process.mainModule === module, process.exitCode);
        console.log(fs.readFileSync(0, 'utf8'), process.cwd(), process.umask());
        console.log(fs.readdirSync('/work'), fs.readdirSync('/tmp'), Object.keys(globalThis));
        console.log(Object.keys(process), Object.keys(require('module')._pathCache));
        console.log(process._getActiveHandles().length, process._getActiveRequests().length);
        console.log(process.listenerCount('exit'), process.stdin.readableFlowing);
        const script = 'env | sort; ls -l /proc/self/fd | wc -l';
        console.log(child.execSync(script, {encoding: 'utf8'}));
        console.log(new Error('x').stack);
    """,
    "ruby": """
        p ARGV, $0, $PROGRAM_NAME, __FILE__, ENV.to_h.sort, $LOAD_PATH, $LOADED_FEATURES.sort
        p DATA.read, $stdin.read, $stdout.sync, Dir.pwd, File.umask, Thread.list.size
        p Dir.children('/work').sort, Dir.children('/tmp'), self.to_s, binding.local_variables
        p Encoding.default_external, Encoding.default_internal, $VERBOSE, $DEBUG, caller
        p global_variables.size, Object.constants.size, __LINE__, __method__
        puts `env | sort; ls -l /proc/self/fd | wc -l`
        __END__
        data
    """,
    "php": """<?php
        error_reporting(E_ALL);
        var_dump($argv, $argc, __FILE__, __LINE__, getcwd(), umask());
        $server = $_SERVER; unset($server['REQUEST_TIME'], $server['REQUEST_TIME_FLOAT']);
        ksort($server);
        var_dump($server, $_ENV, $_GET, getenv(), stream_get_contents(STDIN));
        var_dump(get_included_files()[0], array_keys(get_defined_vars()));
        var_dump(get_defined_functions()['user'], scandir('/work'), scandir('/tmp'));
        var_dump(ob_get_level(), abs(time() - $_SERVER['REQUEST_TIME']) < 2);
        echo shell_exec('env | sort');
    """,
}

OUTSIDE = {
    "python": "import base64, os; os.system(base64.b64decode('SCRIPT').decode())",
    "node": """
        const script = Buffer.from('SCRIPT', 'base64').toString();
        require('child_process').spawnSync('sh', ['-c', script], {stdio: 'inherit'});
    """,
    "ruby": "system('SCRIPT'.unpack1('m'))",
    "php": "<?php passthru(base64_decode('SCRIPT'));",
}


async def both(backend: NativeBackend, language: str, code: str) -> tuple[str, str]:
    """What a program prints in the warm interpreter, and in a fresh one."""
    status = {each.id: each for each in await backend.languages()}[language]
    if not status.available:
        pytest.skip(f"{language}: {status.reason}")
    warm = plan(language, code, args=ARGS, env=ENV, stdin=STDIN, timeout_ms=30_000, cpu_ms=30_000)
    assert warm.warm
    outcomes = [await carry_out(backend, each) for each in (warm, replace(warm, warm=False))]
    assert [o.status for o in outcomes] == [RunStatus.SUCCEEDED] * 2, outcomes
    assert [o.stderr.data for o in outcomes] == [b"", b""]
    said = [outcome.stdout.data.decode() for outcome in outcomes]
    assert said[0]
    return said[0], said[1]


@pytest.mark.parametrize("language", LOOKS)
async def test_a_program_sees_of_itself_what_it_sees_in_a_fresh_interpreter(
    backend: NativeBackend, language: str
) -> None:
    warm, fresh = await both(backend, language, LOOKS[language])
    assert warm == fresh


@pytest.mark.parametrize("language", OUTSIDE)
async def test_its_descriptors_are_those_of_a_fresh_interpreter(
    backend: NativeBackend, language: str
) -> None:
    """Which of its own an interpreter opens first is chance; what they are is not."""
    look = "sleep 0.05; for fd in /proc/$PPID/fd/*; do echo ${fd##*/} $(readlink $fd); done"
    warm, fresh = await both(backend, language, in_a_shell(language, look))
    assert set(KEPT_OPEN.get(language, ())) <= kinds(warm)
    assert kinds(warm) - set(KEPT_OPEN.get(language, ())) == kinds(fresh)
    for said in (warm, fresh):
        assert [line.split()[0] for line in sorted(said.splitlines(), key=number)][:3] == STANDARD


REHEARSED = """
    import os, sys
    import matplotlib.pyplot as plt, numpy as np, pandas as pd
    pd.DataFrame = lambda *_, **__: print("a child of the program rehearses", flush=True)
    if os.fork() == 0:
        os._exit(0)
    os.wait()
    print("rehearsal" in sys.modules, sys.path, sorted(os.listdir("/proc/self/fd")))
    print(plt.get_fignums(), plt.figure().number, plt.get_backend(), sorted(plt.rcParams.items()))
    print(os.listdir("/tmp"), np.geterr(), pd.options.display.max_rows)
"""


@pytest.mark.parametrize("loaded", ["json", "decimal"])
async def test_the_collector_lists_nothing_of_ours_but_the_plainest(
    backend: NativeBackend, loaded: str
) -> None:
    """Whatever else it listed would keep every program from its quick end (``init/quiet.c``)."""
    code = f"import {loaded}, gc\nprint(*{{type(o).__name__ for o in gc.get_objects()}})"
    outcome = await carry_out(backend, plan("python", code))
    assert set(outcome.stdout.data.decode().split()) <= {
        "dict", "function", "list", "module", "tuple",
    }  # fmt: skip


async def test_what_the_data_stack_rehearsed_does_not_show(backend: NativeBackend) -> None:
    warm, fresh = await both(backend, "python", REHEARSED)
    assert warm == fresh


STANDARD = ["0", "1", "2"]
KEPT_OPEN = {"php": [("/opt/ahead/php.php", 1)]}
"""PHP holds every file of a program open to its end, the one before the program's own too."""


def number(line: str) -> int:
    return int(line.split()[0])


def kinds(listing: str) -> set[tuple[str, int]]:
    """What the descriptors are, without the kernel's numbers, and how many of each."""
    targets = Counter(line.split()[1].partition(":[")[0] for line in listing.splitlines())
    return set(targets.items())


@pytest.mark.parametrize("language", OUTSIDE)
async def test_nothing_in_the_memory_of_its_start_names_the_service(
    backend: NativeBackend, language: str
) -> None:
    """``/proc/PID/environ`` shows of a program what ``env`` would have given it, and no more."""
    look = "tr '\\0' '\\n' < /proc/$PPID/environ | cut -d= -f1 | sort"
    warm, fresh = await both(backend, language, in_a_shell(language, look))
    assert set(warm.split()) <= set(fresh.split())


def in_a_shell(language: str, script: str) -> str:
    """A program that runs a script whose parent it is."""
    return OUTSIDE[language].replace("SCRIPT", base64.b64encode(script.encode()).decode())
