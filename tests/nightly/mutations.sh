#!/usr/bin/env bash
# The tests of faults can fail: each break of tests/fault/mutations, made in a copy of the tree, is caught by one of its tests.
# mutations.sh [--check] [WORD...]: only those whose first line has one of the words; --check: only whether what they break is still there.
# limit: 3600
# nightly: 7200
# shellcheck source-path=SCRIPTDIR source=../lib.sh
. "$(dirname "$0")/../lib.sh"

tree=$TEST_DIR/tree
build=$tree/build
table=$TOP/tests/fault/mutations

check=no
if [ "${1:-}" = --check ]; then
	check=yes
	shift
fi

# With the objects that are built already: one file is compiled again for each.
copy_tree() {
	mkdir "$tree" "$build"
	cp -a "$TOP/Makefile" "$TOP/lib" "$TOP/fs" "$TOP/tests" "$tree"
	(cd "$BUILD" && cp -a --parents fault-lib tests/fault "$build")
}
[ $check = yes ] || copy_tree

build_test() {
	# A break may leave something unused.
	make -s -C "$tree" BUILD=build ${SAN:+SAN="$SAN"} CFLAGS=-Wno-error "build/$1" >"$TEST_DIR/make.log" 2>&1
}

# One of its tests fails, with one throw of the dice or another.
is_caught() {
	local program arguments seed
	for seed in $(seq "$SEED" $((SEED + 5))); do for test in "${tests[@]}"; do
		read -r program arguments <<<"$test"
		if ! build_test "$program"; then
			cat "$TEST_DIR/make.log"
			fail "$name: it doesn't compile"
		fi
		rm -rf "$TEST_DIR/run"
		mkdir "$TEST_DIR/run"
		# shellcheck disable=SC2086
		if ! (cd "$TEST_DIR/run" && NIGHTLY='' SEED=$seed TMPDIR=$TEST_DIR/run timeout 900 "$build/$program" $arguments >"$TEST_DIR/log" 2>&1); then
			grep -qE '^FAILED|without any fault|: not so: ' "$TEST_DIR/log" || {
				cat "$TEST_DIR/log"
				fail "$name: $test fails for another reason"
			}
			caught_by=$test
			return 0
		fi
	done; done
	return 1
}

is_wanted() { # WORD...
	local word
	for word in "$@"; do
		[[ $name != *"$word"* ]] || return 0
	done
	[ $# = 0 ]
}

nr=0 missed=0
try() {
	local text
	text=$(cat "$TOP/$file" && echo x)
	text=${text%x}
	nr=$((nr + 1))
	if [[ $text != *"$old"* ]]; then
		echo "GONE    $name: the text isn't in $file"
		missed=$((missed + 1))
		return
	fi
	[ $check = no ] || return 0
	printf '%s' "${text/"$old"/"$new"}" >"$tree/$file"
	if is_caught; then
		echo "caught  $name  ($caught_by)"
	else
		echo "MISSED  $name"
		missed=$((missed + 1))
	fi
	cp "$TOP/$file" "$tree/$file"
}

name="" file="" old="" new="" tests=()
while IFS= read -r line; do
	case $line in
	"=== "*) name=${line#=== } file="" old="" new="" tests=() ;;
	"file "*) file=${line#file } ;;
	"test "*) tests+=("${line#test }") ;;
	-*) old+=${old:+$'\n'}${line#-} ;;
	+*) new+=${new:+$'\n'}${line#+} ;;
	"")
		if [ -n "$name" ] && is_wanted "$@"; then try; fi
		name=""
		;;
	esac
done < <(cat "$table" && echo)

echo "$nr breaks, $missed of them gone or caught by nothing"
[ "$nr" -gt 0 ] && [ $missed = 0 ]
