// The compile step of a run, started before the run is known: it waits on descriptor 3 for the job
// (init/init.c), with a compiler and a linker that wait behind it. design/go.md says why.
//
// What they cannot do, and whatever fails, goes to build.sh.
package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const job = 3

// A compiler or linker of go_ahead/: one byte says that it waits, its input is what it waits for.
type tool struct {
	process *os.Process
	in, out *os.File
}

func start(path string, env []string, args ...string) *tool {
	null, _ := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	theirIn, in, failed := os.Pipe()
	out, theirOut, failedToo := os.Pipe()
	if failed != nil || failedToo != nil {
		return nil
	}
	process, failed := os.StartProcess(path, append([]string{path}, args...),
		&os.ProcAttr{Env: env, Files: []*os.File{theirIn, theirOut, null}})
	for _, file := range []*os.File{theirIn, theirOut, null} {
		file.Close()
	}
	if failed != nil {
		return nil
	}
	return &tool{process, in, out}
}

func (t *tool) waits() bool {
	if t == nil {
		return false
	}
	n, _ := t.out.Read(make([]byte, 1))
	return n == 1
}

func (t *tool) does(work string) bool {
	if t == nil {
		return false
	}
	if _, failed := t.in.WriteString(work); failed != nil || t.in.Close() != nil {
		return false
	}
	state, failed := t.process.Wait()
	return failed == nil && state.Success()
}

func (t *tool) end() {
	if t != nil && t.process.Kill() == nil {
		t.process.Wait()
	}
}

// The program's files, as build.sh would take them; none where it is not for the quick way.
func sources() []string {
	if _, missing := os.Lstat("go.mod"); missing == nil {
		return nil
	}
	var found []string
	names, _ := filepath.Glob("*.go")
	for _, name := range names {
		if name[0] == '.' || strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, failed := os.ReadFile(name)
		special := []byte("\n//go:debug")
		if failed != nil || bytes.HasPrefix(text, special[1:]) || bytes.Contains(text, special) {
			return nil
		}
		found = append(found, "./"+name)
	}
	return found
}

// What build.sh has to do still: "" is all of it, "slow" without another try of the quick way.
func quick(compiler func(files []string) bool, linker *tool, object string) (done bool, left string) {
	defer os.Remove(object)
	files := sources()
	if len(files) == 0 || !compiler(files) {
		return false, "slow"
	}
	return linker.does("link"), ""
}

func main() {
	syscall.CloseOnExec(job)
	index := os.Args[1]
	ahead := index + "/ahead/"
	packages, _ := os.ReadFile(ahead + "packages")
	object := filepath.Join(os.TempDir(), ".go-main.a")
	os.Mkdir(".bin", 0o777)
	// As in build.sh, a limit holds where one of them grows large; the linker waits with 24 MiB while
	// the compiler runs. With a percentage, what it has free would go back to the kernel meanwhile.
	linker := start(ahead+"link", []string{"GOGC=off", "GOMEMLIMIT=96MiB",
		"CE_PACKAGES=" + string(packages)}, "-importcfg", index+"/link.cfg", "-s", "-w",
		"-o", ".bin/main", object)
	collect := []string{"GOGC=400", "GOMEMLIMIT=72MiB"}
	flags := []string{"-p", "main", "-complete", "-importcfg", index + "/compile.cfg", "-o", object}
	compiler := start(ahead+"compile", collect, append(flags, "main.go")...)
	compile := func(files []string) bool { return compiler.does(strings.Join(files, "\x00")) }
	if !compiler.waits() { // not every Go has one that can
		compile = func(files []string) bool {
			return start(index+"/tool/compile", collect, append(flags, files...)...).does("")
		}
	}
	linker.waits()

	syscall.Write(job, []byte{0})
	told, _ := io.ReadAll(os.NewFile(job, "job"))
	if len(told) == 0 {
		os.Exit(0)
	}
	done, left := quick(compile, linker, object)
	if done {
		os.Exit(0)
	}
	compiler.end()
	linker.end()
	syscall.Exec("/usr/bin/sh", []string{"sh", index + "/build.sh", left}, os.Environ())
	os.Exit(2)
}
