package workflow

import (
	"math"
	"strings"
	"testing"

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
	if Failed(problems) {
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
