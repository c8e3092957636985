package ld

import (
	"cmd/link/internal/sym"
	"os"
	"runtime"
	"strings"
)

var aheadLibraries []*sym.Library

// aheadLoad loads the libraries that most programs have, before the program, and waits for it.
func aheadLoad(ctxt *Link) {
	program := ctxt.Library
	ctxt.Library = nil
	for _, name := range strings.Fields(os.Getenv("CE_PACKAGES")) {
		loadinternal(ctxt, name)
	}
	for i := 0; i < len(ctxt.Library); i++ { // it grows
		loadobjfile(ctxt, ctxt.Library[i])
	}
	aheadLibraries, ctxt.Library = ctxt.Library, program
	ctxt.loader.AheadSyms()
	aheadRoom(8 << 20)
	aheadFetch()
	aheadWait()
}

// aheadRoom leaves so many bytes of the heap free whose pages exist.
func aheadRoom(size int) {
	room := make([]byte, size)
	for i := 0; i < size; i += 4096 {
		room[i] = 1
	}
	runtime.KeepAlive(room)
	runtime.GC()
}

// aheadJoin puts the libraries that the program is made of in the order of an ordinary link, in which
// the program comes first and each library brings those it imports. A program that is made of less
// than is loaded is left to the ordinary linker: definitions of the others could show.
func aheadJoin(ctxt *Link) {
	loaded := append(ctxt.Library, aheadLibraries...)
	seen := map[*sym.Library]bool{}
	var order []*sym.Library
	add := func(lib *sym.Library) {
		if lib != nil && !seen[lib] {
			seen[lib] = true
			order = append(order, lib)
		}
	}
	add(ctxt.Library[0])
	for i := 0; i < len(order); i++ { // it grows
		for _, imported := range order[i].Imports {
			add(imported)
		}
		if i == len(order)-1 {
			add(ctxt.LibraryByPkg["runtime"])
		}
	}
	for _, lib := range loaded {
		if !seen[lib] {
			Exitf("%s is loaded, and is not of the program", lib.Pkg)
		}
	}
	ctxt.Library = order
	ctxt.loader.AheadOrder(order)
}
