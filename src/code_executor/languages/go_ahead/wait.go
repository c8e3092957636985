package PACKAGE

import (
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
)

// aheadFetch has the mapped files in the page table: the program's text, and the libraries.
func aheadFetch() {
	const populateRead = 22 // MADV_POPULATE_READ; an older kernel refuses, and nothing is lost
	maps, _ := os.ReadFile("/proc/self/maps")
	for _, line := range strings.Split(string(maps), "\n") {
		parts := strings.Fields(line)
		if len(parts) < 6 || parts[5][0] != '/' || parts[1][0] != 'r' {
			continue
		}
		ends := strings.Split(parts[0], "-")
		from, _ := strconv.ParseUint(ends[0], 16, 64)
		to, _ := strconv.ParseUint(ends[1], 16, 64)
		syscall.Syscall(syscall.SYS_MADVISE, uintptr(from), uintptr(to-from), populateRead)
	}
}

// aheadWait says that it waits, and returns what it waited for; not if that never comes.
func aheadWait() string {
	os.Stdout.Write([]byte{0})
	told, _ := io.ReadAll(os.Stdin)
	if len(told) == 0 {
		os.Exit(1)
	}
	return string(told)
}
