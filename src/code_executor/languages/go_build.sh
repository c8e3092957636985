# Builds the Go program in the current directory into .bin/main; runs inside a sandbox, in an
# environment that holds nothing of the caller's. design/go.md says why it is made like this.
#
# The quick way calls the compiler and the linker directly with the export index. Whatever is not
# one plain package of the standard library's imports, and whatever fails, goes to `go build`,
# whose messages are the ones a Go programmer knows.
set -u
# Collecting garbage costs a small program's compiler a tenth of its time. The limit holds where it
# would grow large.
export GOGC=400 GOMEMLIMIT=96MiB
index=${0%/*}
object=${TMPDIR:-/tmp}/.go-main.a
slow=${1-} # the quick way was tried already

# What does not need the compiler's result runs beside it.
quick() {
    [ ! -e go.mod ] || return 1
    mkdir -p .bin &
    made=$!
    grep -q '^//go:debug' "$@" &
    special=$!
    "$index/tool/compile" -p main -complete -importcfg "$index/compile.cfg" \
        -o "$object" "$@" >/dev/null 2>&1 && ! wait "$special" && wait "$made" &&
        "$index/tool/link" -importcfg "$index/link.cfg" -s -w -o .bin/main "$object" >/dev/null 2>&1
}

# Further source files beside main.go belong to the program, tests do not.
set --
for file in ./*.go; do
    case $file in *_test.go) ;; *) set -- "$@" "$file" ;; esac
done

[ "$slow" != slow ] && quick "$@" && exec rm -f "$object"
wait
mkdir -p .bin
rm -f "$object" .bin/main
[ ! -e go.mod ] || set -- .
export GOCACHE="$index/cache" GOPATH="${TMPDIR:-/tmp}/.go" GOPROXY=off GOTOOLCHAIN=local CGO_ENABLED=0
exec "$index/bin/go" build -o .bin/main "$@"
