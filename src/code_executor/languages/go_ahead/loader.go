package loader

import (
	"cmd/internal/goobj"
	"cmd/link/internal/sym"
	"sort"
)

var (
	aheadStart = goObjStart // the first object whose symbols are not loaded yet
	aheadState *loadState
	aheadObjs  []*oReader // in the order in which they would have been loaded
	aheadRanks []Sym
)

// AheadSyms does the first half of LoadSyms for the objects that are there already. The second half,
// which makes symbols that nobody has defined, is done for all when the program is there.
func (l *Loader) AheadSyms() {
	const hashedSize, hashed64Size, symSize = 8192, 4096, 65536
	l.objSyms = make([]objSym, 1, symSize)
	//LOADSYMS
	aheadState, aheadStart = &st, len(l.objs)
}

// AheadOrder is told the libraries, all of them, in the order in which they would have been loaded.
func (l *Loader) AheadOrder(libs []*sym.Library) {
	place := make(map[*sym.Library]int, len(libs))
	for i, lib := range libs {
		place[lib] = i
	}
	for _, o := range l.objs[goObjStart:] {
		aheadObjs = append(aheadObjs, READER)
	}
	sort.SliceStable(aheadObjs, func(i, j int) bool {
		return place[aheadObjs[i].unit.Lib] < place[aheadObjs[j].unit.Lib]
	})
}

// AheadRanked finds out which number each symbol would have had, and which of several definitions.
func (l *Loader) AheadRanked() {
	l.aheadChoose()
	aheadRanks = make([]Sym, len(l.objSyms))
	next := Sym(1)
	give := func(syms []Sym) {
		for _, s := range syms {
			if aheadRanks[s] == 0 {
				aheadRanks[s] = next
				next++
			}
		}
	}
	for _, r := range aheadObjs {
		give(r.syms[:r.ndef])
	}
	for _, r := range aheadObjs {
		give(r.syms[r.ndef:r.NAlldef()])
	}
	for s := 1; s < len(aheadRanks); s++ {
		give([]Sym{Sym(s)})
	}
}

// aheadChoose takes, of definitions that stand for each other, the first of the largest ones.
func (l *Loader) aheadChoose() {
	chosen := make([]objSym, len(l.objSyms))
	sizes := make([]uint32, len(l.objSyms))
	for _, r := range aheadObjs {
		for i := r.ndef; i < r.NAlldef(); i++ {
			s, o := r.syms[i], r.Sym(uint32(i))
			hashed := i < r.ndef+r.nhashed64def+r.nhasheddef
			if hashed || o.Dupok() && s != 0 {
				if chosen[s].objidx == 0 || o.Siz() > sizes[s] {
					chosen[s], sizes[s] = objSym{r.objidx, uint32(i)}, o.Siz()
				}
			} else {
				sizes[s] = 1<<32 - 1 // what only one may define
			}
		}
	}
	for s, definition := range chosen {
		if definition.objidx != 0 && sizes[s] != 1<<32-1 {
			l.objSyms[s] = definition
		}
	}
}

// AheadSymbols is all symbols by that number.
func (l *Loader) AheadSymbols() []Sym {
	all := make([]Sym, l.NSym())
	for i := range all {
		all[AheadRank(Sym(i))] = Sym(i)
	}
	return all[1:]
}

// AheadRank is the number that the symbol would have had, as far as it matters for an order.
func AheadRank(s Sym) Sym {
	if int(s) < len(aheadRanks) {
		return aheadRanks[s]
	}
	return s
}
