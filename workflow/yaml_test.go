package workflow

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestScalars(t *testing.T) {
	for _, tt := range []struct {
		src  string
		kind kind
		text string
	}{
		{"on", kindString, "on"}, {"yes", kindString, "yes"}, {"No", kindString, "No"}, {"tRue", kindString, "tRue"},
		{"true", kindBool, "true"}, {"FALSE", kindBool, "false"},
		{"null", kindNull, ""}, {"~", kindNull, ""}, {"Null", kindNull, ""}, {"nULL", kindString, "nULL"},
		{"010", kindNumber, "10"}, {"0o17", kindNumber, "15"}, {"0x1F", kindNumber, "31"}, {"-0x1F", kindString, "-0x1F"},
		{"0o8", kindString, "0o8"}, {"0x", kindString, "0x"}, {"1_000", kindString, "1_000"}, {"0b1", kindString, "0b1"},
		{"3.10", kindNumber, "3.1"}, {".5", kindNumber, "0.5"}, {"5.", kindNumber, "5"}, {"+1", kindNumber, "1"}, {"-1e3", kindNumber, "-1000"},
		{"1e", kindString, "1e"}, {".", kindString, "."}, {"-", kindSeq, ""}, {"1.2.3", kindString, "1.2.3"}, {"1:30", kindString, "1:30"},
		{"2024-01-01", kindString, "2024-01-01"}, {".inf", kindNumber, "Infinity"}, {"-.INF", kindNumber, "-Infinity"}, {".NaN", kindNumber, "NaN"},
		{"inf", kindString, "inf"}, {"'1'", kindString, "1"}, {"\"true\"", kindString, "true"}, {"|\n  1", kindString, "1"},
		{"!!str 1", kindString, "1"}, {"!!int 0x10", kindNumber, "16"}, {"!!float 1", kindNumber, "1"}, {"!!bool 'true'", kindBool, "true"},
		{"!!null ''", kindNull, ""}, {"&a x", kindString, "x"},
		{strings.Repeat("9", 400), kindNumber, "Infinity"},
	} {
		n, p := parseYAML([]byte("k: "+tt.src), Limits{}.orDefaults())
		if tt.kind == kindSeq {
			continue // an empty sequence entry, as the YAML says
		}
		if p != nil {
			t.Errorf("%s: %v", tt.src, p)
			continue
		}
		if v := n.get("k"); v.kind != tt.kind || v.text != tt.text {
			t.Errorf("%s: got kind %d %q, want %d %q", tt.src, v.kind, v.text, tt.kind, tt.text)
		}
	}
	for _, src := range []string{"!!int x", "!!bool yes", "!!null x", "!!binary eA==", "!x y", "!!timestamp 2024-01-01"} {
		if _, p := parseYAML([]byte("k: "+src), Limits{}.orDefaults()); p == nil {
			t.Errorf("%s was accepted", src)
		}
	}
	if f, ok := parseNumber("0x" + strings.Repeat("f", 300)); !ok || !math.IsInf(f, 1) {
		t.Errorf("a long hexadecimal number: got %v, %v", f, ok)
	}
}

// TestHostileFiles holds files that try to exhaust the server, each with what its problem must say.
func TestHostileFiles(t *testing.T) {
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 100; i++ {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d,", i-1), 10))
	}
	job := "on: push\njobs:\n a:\n  runs-on: x\n  "
	for _, tt := range []struct{ name, src, want string }{
		{"flow nesting", strings.Repeat("[", 10_000), "nested more than 100 levels deep"},
		{"closed flow nesting", strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), "nested more than 100 levels deep"},
		{"block nesting", strings.Repeat("- ", 10_000), "nested more than 100 levels deep"},
		{"mapping nesting", strings.Repeat("{a: ", 10_000), "nested more than 100 levels deep"},
		{"alias bomb", bomb, "nodes with its aliases expanded"},
		{"nesting by aliases", "a: &a [[[[[[[[[[x]]]]]]]]]]\nb: " + strings.Repeat("[", 95) + "*a" + strings.Repeat("]", 95), "expanded"},
		{"self reference", "a: &a [*a]", "the anchor 'a' contains itself"},
		{"five megabytes", strings.Repeat("a: b\n", 1<<20), "the file is too large: 5242880 bytes, at most 524288 are read"},
		{"not UTF-8", "a: b\nc: \xff", "the file is not UTF-8"},
		{"two documents", "on: push\n---\non: push\n", "not valid YAML"},
		{"huge exclude", job + "strategy: {matrix: {x: [" + strings.Repeat("1,", 250) + "], y: [" + strings.Repeat("1,", 250) + "], exclude: [" + strings.Repeat("{x: 2},", 100) + "]}}", "the matrix is too large"},
		{"huge include", job + "strategy: {matrix: {x: [1], include: [" + strings.Repeat("{x: 1},", 2000) + "]}}", "at most 1024 are allowed"},
		{"many wrong keys", job + "steps: [" + strings.Repeat("{rum: x},", 30_000) + "]", "more than 500 problems"},
		{"many unknown needs", job + "needs: [" + strings.Repeat("b,", 30_000) + "]", "depends on unknown job 'b'"},
		{"long expression", job + "if: " + strings.Repeat("(", 500_000), "expression length"},
		{"deep expression", job + "if: '" + strings.Repeat("!", 20_000) + "x'", "depth"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			start := time.Now()
			_, problems := Parse("x.yml", []byte(tt.src))
			took := time.Since(start)
			runtime.ReadMemStats(&after)
			if len(problems) == 0 || !strings.Contains(string(report(problems)), tt.want) {
				t.Errorf("got %.300s, want %s", report(problems), tt.want)
			}
			if took > 3*time.Second { // the bar is 100 ms; the machine may be busy
				t.Errorf("took %v", took)
			}
			if used := (after.TotalAlloc - before.TotalAlloc) >> 20; used > 128 {
				t.Errorf("allocated %d MB in all", used)
			}
		})
	}
}

func TestManySteps(t *testing.T) {
	src := "on: push\njobs:\n a:\n  runs-on: x\n  steps:\n" + strings.Repeat("  - run: x\n", 20_000)
	start := time.Now()
	w, problems := Parse("x.yml", []byte(src))
	if len(problems) > 0 || w.Jobs[0].Steps[19_999].ID != "__run_20000" {
		t.Fatalf("got %v", problems)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestStepIDs(t *testing.T) {
	src := `
on: push
jobs:
  a:
    runs-on: x
    steps:
      - {run: a}
      - {run: b, id: RUN_2}
      - {run: c, id: _run}
      - {run: d}
      - {uses: Actions/Checkout@v4}
      - {uses: actions/checkout/sub/path@v4}
      - {uses: 'docker://ghcr.io/a/b:1'}
      - {uses: 'docker://1'}
      - {uses: ./a}
      - {uses: 'ä/b@c'}
      - {uses: "a/` + strings.Repeat("b", 150) + `@v1"}
      - {uses: "a/` + strings.Repeat("b", 150) + `@v1"}
`
	w, problems := Parse("x.yml", []byte(src))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	var got []string
	for _, s := range w.Jobs[0].Steps {
		got = append(got, s.ID)
	}
	long := "__a_" + strings.Repeat("b", 96)
	want := []string{"__run", "RUN_2", "_run", "__run_2", "__Actions_Checkout", "__actions_checkout_2", "__ghcr_io_a_b_1", "__1", "__self", "____b", long, long[:98] + "_2"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestByteOrderMark(t *testing.T) {
	_, problems := Parse("x.yml", []byte(byteOrderMark+"no: push\r\njobs: {a: {runs-on: x}}\r\n"))
	want := "x.yml:1:1: error: unexpected value 'no'; did you mean 'on'? [unexpected-key]\n    no: push\n    ^\n"
	if got := string(report(problems)); !strings.HasPrefix(got, want) {
		t.Errorf("got %s", got)
	}
}

func TestCaret(t *testing.T) {
	for _, tt := range []struct {
		line string
		col  int
		want string
	}{
		{"ab\r\n", 2, "ab\n ^"},
		{"\tä: x", 4, "\tä: x\n\t  ^"},
		{"", 1, "\n^"},
		{"short", 99, "short\n     ^"},
		{strings.Repeat("x", 300), 200, strings.Repeat("x", 120) + "\n" + strings.Repeat(" ", 60) + "^"},
	} {
		if got := caret(tt.line, tt.col); got != tt.want {
			t.Errorf("%.20q at %d: got %q, want %q", tt.line, tt.col, got, tt.want)
		}
	}
}

func TestProblemStrings(t *testing.T) {
	p := Problem{File: "f", Line: 1, Column: 2, Message: "m", Rule: "r", Severity: SeverityWarning}
	if got := p.String(); got != "f:1:2: warning: m [r]" {
		t.Error(got)
	}
	if got := (Problem{File: "f", Message: "m"}).Error(); got != "f: m" {
		t.Error(got)
	}
	if Failed([]Problem{p}) || !Failed([]Problem{p, {}}) {
		t.Error("only errors fail")
	}
}
