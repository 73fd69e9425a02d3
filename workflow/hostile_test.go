package workflow

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

const jobHead = "on: push\njobs:\n a:\n  runs-on: x\n  "

// fill fills a file up to the limit with a unit.
func fill(head, unit, tail string) string {
	return head + strings.Repeat(unit, (Limits{}.orDefaults().Bytes-len(head)-len(tail))/len(unit)) + tail
}

// numbered repeats a line with its number, and the number of the line after it.
func numbered(head string, n int, format string) string {
	var b strings.Builder
	b.WriteString(head)
	for i := range n {
		fmt.Fprintf(&b, format, i, i+1)
	}
	return b.String()
}

// bomb is a file whose aliases double, or worse, at each level.
func bomb() string {
	s := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 100; i++ {
		s += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10))
	}
	return s
}

// hostileFiles try to exhaust the server, each with what its first problems must say; "": it is accepted.
func hostileFiles() []struct{ name, src, want string } {
	const crowded = "the file holds more than 100000 nodes"
	return []struct{ name, src, want string }{
		{"flow nesting", strings.Repeat("[", 10_000), "nested more than 100 levels deep"},
		{"closed flow nesting", strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), "nested more than 100 levels deep"},
		{"block nesting", strings.Repeat("- ", 10_000), "nested more than 100 levels deep"},
		{"mapping nesting", strings.Repeat("{a: ", 10_000), "nested more than 100 levels deep"},
		{"nesting as large as can be", fill("", "[", ""), "nested more than 100 levels deep"},
		{"alias bomb", bomb(), "nodes with its aliases expanded"},
		{"nesting by aliases", "a: &a [[[[[[[[[[x]]]]]]]]]]\nb: " + strings.Repeat("[", 95) + "*a" + strings.Repeat("]", 95), "expanded"},
		{"self reference", "a: &a [*a]", "the anchor 'a' contains itself"},
		{"five megabytes", strings.Repeat("a: b\n", 1<<20), "the file is too large: 5242880 bytes, at most 524288 are read"},
		{"not UTF-8", "a: b\nc: \xff", "the file is not UTF-8"},
		{"two documents", "on: push\n---\non: push\n", "not valid YAML"},

		{"flow sequence", fill("a: [", "1,", "]"), crowded},
		{"flow sequence of nothing", fill("a: [", "?,", "]"), crowded},
		{"flow sequence of mappings", fill("a: [", "{},", "]"), crowded},
		{"flow mapping", fill("a: {", "a: b, ", "}"), crowded},
		{"block sequence", fill("a:\n", "- a\n", ""), crowded},
		{"block sequence of nothing", fill("a:\n", "-\n", ""), crowded},
		{"block sequences in sequences", fill("a:\n", "- - - a\n", ""), crowded},
		{"block sequence with comments", fill("a:\n", "- #\n", ""), crowded},
		{"block mapping", fill("", "a: b\n", ""), crowded},
		{"explicit keys", fill("", "?\n", ""), crowded},
		{"empty keys", fill("", ":\n", ""), crowded},
		{"anchors", fill("a:\n", "- &a\n", ""), crowded},
		{"steps", fill(jobHead+"steps:\n", "  - run: x\n", ""), crowded},
		{"quoted flow sequence", fill("a: [", "'a,''[', \"a,\\\"]\", ", "]"), "unexpected value 'a'"},
		{"tags", fill("a:\n", "- !!str\n", ""), "unexpected value 'a'"},
		{"comments", fill("on: push\n", "#\n", ""), "required key is missing: 'jobs'"},
		{"commas and colons in a script", fill(jobHead+"steps:\n   - run: |\n", "      - a: [1,{b: c},2]\n", ""), ""},
		{"one quote", fill("a: ", "'", ""), "not valid YAML"},
		{"escapes", fill("a: \"", "\\x41", "\""), "unexpected value 'a'"},
		{"a scalar of many lines", fill("a: ", "a\n ", ""), "unexpected value 'a'"},

		{"expressions", fill(jobHead+"steps:\n  - run: ", "${{ github.sha }} ", ""), ""},
		{"wrong expressions", fill(jobHead+"steps:\n  - run: ", "${{a}}", ""), "Unrecognized named-value: 'a'"},
		{"unclosed expressions", fill(jobHead+"steps:\n  - run: ", "${{", ""), "The expression is not closed"},
		{"quotes in an expression", fill(jobHead+"steps:\n  - run: \"${{ ", "'", "\""), "The expression is not closed"},
		{"steps with wrong expressions", fill(jobHead+"steps:\n", "  - run: ${{ x }} and more of it\n", ""), "more than 500 problems"},
		{"long expression", jobHead + "if: " + strings.Repeat("(", 500_000), "expression length"},
		{"deep expression", jobHead + "if: '" + strings.Repeat("!", 20_000) + "x'", "depth"},

		{"huge exclude", jobHead + "strategy: {matrix: {x: [" + strings.Repeat("1,", 250) + "], y: [" + strings.Repeat("1,", 250) + "], exclude: [" + strings.Repeat("{x: 2},", 100) + "]}}", "the matrix is too large"},
		{"huge include", jobHead + "strategy: {matrix: {x: [1], include: [" + strings.Repeat("{x: 1},", 2000) + "]}}", "at most 1024 are allowed"},
		{"matrix of vectors", numbered(jobHead+"strategy: {matrix: {", 10_000, "v%d: [%d], ") + "}}", ""},
		{"wrong keys", jobHead + "steps: [" + strings.Repeat("{rum: x},", 30_000) + "]", "more than 500 problems"},
		{"the same key", fill("on: push\njobs:\n", " a: some text or other\n", ""), "more than 500 problems"},
		{"unknown needs", jobHead + "needs: [" + strings.Repeat("b,", 30_000) + "]", "depends on unknown job 'b'"},
		{"needs in a row", numbered("on: push\njobs:\n", 5000, " j%d: {runs-on: x, needs: j%d}\n") + " j5000: {runs-on: x}", "x.yml:3:2: error: the workflow has 5001 jobs; at most 1000 are allowed"},
		{"as many jobs as may be", numbered("on: push\njobs:\n", 1000, " j%d: {runs-on: x%d}\n"), ""},
		{"one job more", numbered("on: push\njobs:\n", 1001, " j%d: {runs-on: x%d}\n"), "the workflow has 1001 jobs; at most 1000 are allowed"},
		{"needs in a circle", numbered("on: push\njobs:\n a: {runs-on: x}\n", 5000, " j%d: {runs-on: x, needs: j%d}\n") + " j5000: {runs-on: x, needs: j0}", "creates a cycle"},
		{"steps that wait", numbered(jobHead+"steps:\n", 5000, "  - {id: j%d, run: x, background: true}\n  - wait: [k%d]\n"), "there is no step 'k1'"},
		{"options", "on: {workflow_dispatch: {inputs: {a: {type: choice, options: [" + strings.Repeat("x,", 50_000) + "]}}}}\njobs: {a: {runs-on: x}}", ""},
		{"patterns", "on: {push: {branches: [" + strings.Repeat("'a**b*', ", 40_000) + "]}}\njobs: {a: {runs-on: x}}", ""},
		{"wrong patterns", "on: {push: {branches: [" + strings.Repeat("'a[', ", 40_000) + "]}}\njobs: {a: {runs-on: x}}", "more than 500 problems"},
		{"one long pattern", "on: {push: {branches: ['" + strings.Repeat("*a", 200_000) + "']}}\njobs: {a: {runs-on: x}}", "*a*a…' is not valid"},
		{"one long value at many places", "on: push\njobs: {a: {runs-on: x, steps: [&a " + strings.Repeat("a", 400_000) + strings.Repeat(", *a", 20_000) + "]}}", "more than 500 problems"},
		{"cron", "on: {schedule: [" + strings.Repeat("{cron: '1 1 1 1 1'},", 20_000) + "]}\njobs: {a: {runs-on: x}}", ""},
	}
}

// TestHostileFiles holds what a file may cost: 100 ms of CPU and 64 MB in all. A busy machine is given six times as long,
// and the race detector ten times that.
func TestHostileFiles(t *testing.T) {
	for _, tt := range hostileFiles() {
		t.Run(tt.name, func(t *testing.T) {
			if !strings.Contains(tt.name, "megabytes") && len(tt.src) > 512<<10 {
				t.Fatalf("the file has %d bytes", len(tt.src))
			}
			var problems []Problem
			took, bytes := cost(func() { problems = planned(tt.src, Limits{}) })
			if text := string(report(problems)); tt.want == "" && Failed(problems) || !strings.Contains(text, tt.want) {
				t.Errorf("got %.300s, want %s", text, tt.want)
			}
			t.Logf("%v of CPU, %d MB", took, bytes>>20)
			if took > slowness*600*time.Millisecond {
				t.Errorf("took %v", took)
			}
			limit := uint64(64 << 20)
			if len(tt.src) > 256<<10 {
				limit = 96 << 20 // in all; a part of it at a time
			}
			if bytes > limit {
				t.Errorf("allocated %d MB in all", bytes>>20)
			}
		})
	}
}

// planned parses a file and compiles it.
func planned(src string, limits Limits) []Problem {
	w, problems := parseLimited("x.yml", []byte(src), limits)
	if w != nil && !Failed(problems) {
		_, more := Compile(w, Options{Trigger: Trigger{Event: "push"}})
		problems = append(problems, more...)
	}
	return problems
}

// cost is the CPU time of the process, its garbage collector's included, and the bytes that were allocated while f ran.
func cost(f func()) (time.Duration, uint64) {
	var before, after runtime.MemStats
	var began, ended syscall.Rusage
	runtime.GC()
	runtime.ReadMemStats(&before)
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &began) // cannot fail for ourselves
	f()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &ended)
	runtime.ReadMemStats(&after)
	return time.Duration(ended.Utime.Nano() + ended.Stime.Nano() - began.Utime.Nano() - began.Stime.Nano()), after.TotalAlloc - before.TotalAlloc
}

// TestGrowth doubles files: what they cost must not grow with the square.
func TestGrowth(t *testing.T) {
	steps := jobHead + "steps:\n"
	for _, tt := range []struct {
		name string
		src  func(n int) string
		n    int
	}{
		{"jobs", func(n int) string { return numbered("on: push\njobs:\n", n, " j%d: {runs-on: x%d}\n") }, 4000},
		{"needs in a row", func(n int) string {
			return numbered("on: push\njobs:\n", n, " j%d: {runs-on: x, needs: j%d}\n") + fmt.Sprintf(" j%d: {runs-on: x}", n)
		}, 3000},
		{"one job needs all", func(n int) string {
			return numbered(numbered("on: push\njobs:\n", n, " j%d: {runs-on: x%d}\n")+" z: {runs-on: x, needs: [", n, "j%d, j%d, ") + "]}"
		}, 3000},
		{"unknown needs", func(n int) string { return numbered("on: push\njobs:\n", n, " j%d: {runs-on: x, needs: k%d}\n") }, 3000},
		{"steps", func(n int) string { return numbered(steps, n, "  - {run: x, name: s%d, env: {A: %d}}\n") }, 4000},
		{"step ids", func(n int) string { return numbered(steps, n, "  - {run: x, id: s%d, name: '%d'}\n") }, 4000},
		{"steps that wait", func(n int) string {
			return numbered(steps, n, "  - {id: j%d, run: x, background: true}\n  - wait: [j%d]\n")
		}, 2000},
		{"expressions in a string", func(n int) string { return steps + "  - run: '" + strings.Repeat("${{ github.sha }} ", n) + "'" }, 10_000},
		{"one expression", func(n int) string { return jobHead + "if: " + strings.Repeat("a.b || ", n) + "a" }, 1400},
		{"a matrix", func(n int) string { return numbered(jobHead+"strategy: {matrix: {", n, "v%d: [%d], ") + "}}" }, 4000},
		{"variables", func(n int) string { return numbered(jobHead+"env: {", n, "V%d: '%d', ") + "}" }, 8000},
		{"unknown keys", func(n int) string { return numbered("on: push\njobs: {a: {runs-on: x}}\n", n, "k%d: %d\n") }, 8000},
		{"aliases", func(n int) string {
			return jobHead + "env: &e {A: b}\n  steps: [" + strings.Repeat("{run: x, env: *e}, ", n) + "]"
		}, 3000},
		{"lines", func(n int) string { return steps + "  - run: |\n" + strings.Repeat("     echo\n", n) }, 20_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			least := func(src string) (took time.Duration, bytes uint64) {
				took = time.Hour
				for range 3 {
					d, b := cost(func() { planned(src, Limits{FileJobs: 1 << 20}) })
					took, bytes = min(took, d), b
				}
				return took, bytes
			}
			once, bytes := least(tt.src(tt.n))
			twice, more := least(tt.src(2 * tt.n))
			t.Logf("%v and %d KB; doubled: %v and %d KB", once, bytes>>10, twice, more>>10)
			if more > 3*bytes {
				t.Errorf("allocated %d KB, and %d KB for twice as much", bytes>>10, more>>10)
			}
			if twice > 4*once+40*time.Millisecond { // of noise
				t.Errorf("took %v, and %v for twice as much", once, twice)
			}
		})
	}
}

// TestCrowd holds the count of indicators to that of nodes.
func TestCrowd(t *testing.T) {
	count := func(src string) int {
		c := crowd{src: []byte(src), limit: 1 << 30}
		for c.at < len(src) {
			c.line()
		}
		return c.nodes
	}
	for _, tt := range []struct {
		src  string
		want int // as parseYAML has it but for the root, and the last entries of flow sequences
	}{
		{"a: b", 2}, {"a:\n", 2}, {"- a\n- b # c, d: e\n", 2}, {"- - - a\n", 3}, {"a: {b: c, d: e}", 5}, {"a: [b, c,\n d, [e, f]]", 6},
		{"a: 'b, c: d\n\n  - e: ''f'", 2}, {"a: \"b: \\\"c: d\" # e: f\n", 2}, {"# a: b\n  # - c\n", 0},
		{"a: |\n  b: c\n\n  - d\ne: f", 4}, {"- a: >-\n    b: c\n  d: e\n", 5}, {"- |\n  a: b\n- c", 2}, {"a: b:c\n'd: e': f#g", 4},
		{"a: &b !c |\n  d: e\nf: *b", 4}, {"? a\n: b", 2}, {"http://a: b", 2}, {"a: [{b: c}, \"d, e\"]", 4},
	} {
		if got := count(tt.src); got != tt.want {
			t.Errorf("%q: counted %d, want %d", tt.src, got, tt.want)
		}
	}
	files, _ := filepath.Glob(filepath.Join(suite(t, "workflows"), "*"))
	for _, f := range files {
		src := readFile(t, f)
		n, p := parseYAML(src, Limits{}.orDefaults())
		if p != nil {
			t.Fatal(p)
		}
		got, want := count(string(src)), nodes(n)
		if got > want+want/20 || got < want/2 {
			t.Errorf("%s: counted %d of %d nodes", f, got, want)
		}
	}
}

// nodes counts a node and all below it.
func nodes(n *node) int {
	sum := 1
	for _, item := range n.items {
		sum += nodes(item)
	}
	for _, p := range n.pairs {
		sum += nodes(p.key) + nodes(p.value)
	}
	return sum
}

func TestManySteps(t *testing.T) {
	src := "on: push\njobs:\n a:\n  runs-on: x\n  steps:\n" + strings.Repeat("  - run: x\n", 20_000)
	w, problems := Parse("x.yml", []byte(src))
	if len(problems) > 0 || w.Jobs[0].Steps[19_999].ID != "__run_20000" {
		t.Fatalf("got %v", problems)
	}
}
