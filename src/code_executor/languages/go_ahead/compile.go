package gc

import "strings"

// aheadFiles waits for the names of the source files; those on the command line stand for them.
func aheadFiles(_ []string) []string {
	aheadFetch()
	return strings.Split(aheadWait(), "\x00")
}
