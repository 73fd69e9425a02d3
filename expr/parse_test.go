package expr_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/expr"
)

func TestParseErrors(t *testing.T) {
	for _, test := range []struct {
		src    string
		kind   expr.ErrorKind
		line   int
		column int
		what   string // the message up to the place
	}{
		{"'open", expr.Lexing, 1, 1, "Unexpected symbol: ''open'"},
		{"a ==\n\t'it''s", expr.Lexing, 2, 2, "Unexpected symbol: ''it''s'"},
		{`"a"`, expr.Lexing, 1, 1, `Unexpected symbol: '"a"'`},
		{"a = b", expr.Lexing, 1, 3, "Unexpected symbol: '='"},
		{"a & b", expr.Lexing, 1, 3, "Unexpected symbol: '&'"},
		{"a |b", expr.Lexing, 1, 3, "Unexpected symbol: '|b'"},
		{"1 + 2", expr.Lexing, 1, 3, "Unexpected symbol: '+'"},
		{"1-2", expr.Lexing, 1, 1, "Unexpected symbol: '1-2'"},
		{"-x", expr.Lexing, 1, 1, "Unexpected symbol: '-x'"},
		{".x", expr.Lexing, 1, 1, "Unexpected symbol: '.x'"},
		{"'a'.b", expr.Lexing, 1, 4, "Unexpected symbol: '.b'"},
		{"a.-b", expr.Lexing, 1, 3, "Unexpected symbol: '-b'"},
		{"ab$c", expr.Lexing, 1, 1, "Unexpected symbol: 'ab$c'"},
		{"Ünder", expr.Lexing, 1, 1, "Unexpected symbol: 'Ünder'"},
		{"'😀' ?", expr.Lexing, 1, 5, "Unexpected symbol: '?'. Located at position 6"},
		{"( (1 == 2)", expr.Parsing, 1, 10, "Unexpected end of expression: ')'"},
		{"a ==", expr.Parsing, 1, 3, "Unexpected end of expression: '=='"},
		{"f(1", expr.Parsing, 1, 3, "Unexpected end of expression: '1'"},
		{"a[1", expr.Parsing, 1, 3, "Unexpected end of expression: '1'"},
		{"a.", expr.Parsing, 1, 2, "Unexpected end of expression: '.'"},
		{"!", expr.Parsing, 1, 1, "Unexpected end of expression: '!'"},
		{"a b", expr.Parsing, 1, 3, "Unexpected symbol: 'b'"},
		{"a.'b'", expr.Parsing, 1, 3, "Unexpected symbol: ''b''"},
		{"a.1", expr.Parsing, 1, 3, "Unexpected symbol: '1'"},
		{"a.[1]", expr.Parsing, 1, 3, "Unexpected symbol: '['"},
		{"a[]", expr.Parsing, 1, 3, "Unexpected symbol: ']'"},
		{"'a'[0]", expr.Parsing, 1, 4, "Unexpected symbol: '['"},
		{"true.x", expr.Lexing, 1, 5, "Unexpected symbol: '.x'"},
		{"()", expr.Parsing, 1, 2, "Unexpected symbol: ')'"},
		{"(1))", expr.Parsing, 1, 4, "Unexpected symbol: ')'"},
		{"f(,)", expr.Parsing, 1, 3, "Unexpected symbol: ','"},
		{"f(1 2)", expr.Parsing, 1, 5, "Unexpected symbol: '2'"},
		{"f()()", expr.Parsing, 1, 4, "Unexpected symbol: '('"},
		{"*", expr.Parsing, 1, 1, "Unexpected symbol: '*'"},
		{"a.*b", expr.Parsing, 1, 4, "Unexpected symbol: 'b'"},
		{"1 == == 2", expr.Parsing, 1, 6, "Unexpected symbol: '=='"},
		{"a &&\n || b", expr.Parsing, 2, 2, "Unexpected symbol: '||'"},
		{"true && contains('a')", expr.Parsing, 1, 9, "Too few parameters supplied: 'contains'"},
		{"ENDSWITH(1,2,3)", expr.Parsing, 1, 1, "Too many parameters supplied: 'ENDSWITH'"},
		{"format()", expr.Parsing, 1, 1, "Too few parameters supplied: 'format'"},
		{"join(1,2,3)", expr.Parsing, 1, 1, "Too many parameters supplied: 'join'"},
		{"hashFiles()", expr.Parsing, 1, 1, "Too few parameters supplied: 'hashFiles'"},
		{"case(true, 1)", expr.Parsing, 1, 1, "Too few parameters supplied: 'case'"},
		{"case(true, 1, true, 2)", expr.Parsing, 1, 1, "Even number of parameters supplied, requires an odd number of parameters: 'case'"},
		{strings.Repeat("x", 21001), expr.Lexing, 1, 1, "Exceeded max expression length 21000"},
	} {
		e, err := expr.Parse(test.src)
		var got *expr.Error
		if !errors.As(err, &got) {
			t.Errorf("%.40q: got %v, %v", test.src, e, err)
			continue
		}
		want := expr.Error{Kind: test.kind, Line: test.line, Column: test.column, Message: got.Message, Offset: got.Offset, Token: got.Token}
		if got.Token != "" && !strings.Contains(got.Message, ": '"+got.Token+"'. Located at position ") {
			t.Errorf("%.40q: the token %q is not that of %s", test.src, got.Token, got.Message)
		}
		if diff := cmp.Diff(want, *got); diff != "" || !strings.HasPrefix(got.Message, test.what) {
			t.Errorf("%.40q: %s\n(-want +got)\n%s", test.src, got.Message, diff)
		}
	}
}

func TestParseErrorText(t *testing.T) {
	_, err := expr.Parse("  'é' ==\n github..x ")
	got, ok := err.(*expr.Error)
	if !ok {
		t.Fatal(err)
	}
	want := &expr.Error{Kind: expr.Lexing, Offset: 18, Line: 2, Column: 9, Token: ".x",
		Message: "Unexpected symbol: '.x'. Located at position 16 within expression: 'é' ==\n github..x"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// Depth is counted as GitHub's parser does: 50 levels pass and 51 do not.
func TestDepth(t *testing.T) {
	for _, test := range []struct {
		name               string
		open, core, closed string
		deepest            int
	}{
		{"groups", "(", "1", ")", 49},
		{"nots", "!", "1", "", 49},
		{"calls", "toJSON(", "1", ")", 49},
		{"properties", "", "a", ".b", 49},
		{"indexes", "", "a", "['b']", 49},
		{"nested indexes", "a[", "1", "]", 49},
		{"chains", "(1||", "1", ")", 24},
	} {
		for n, want := range map[int]bool{test.deepest: true, test.deepest + 1: false, 1500: false} {
			_, err := expr.Parse(strings.Repeat(test.open, n) + test.core + strings.Repeat(test.closed, n))
			if (err == nil) != want {
				t.Errorf("%s, %d deep: %.80v", test.name, n, err)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "Exceeded max expression depth 50") {
				t.Errorf("%s, %d deep: %.80v", test.name, n, err)
			}
		}
	}
}

func TestParseLong(t *testing.T) {
	long := "'" + strings.Repeat("😀", 10499) + "'" // 21000 UTF-16 units
	for text, want := range map[string]bool{
		long:                               true,
		" " + long + "\n":                  true,
		long[:len(long)-1] + "x'":          false,
		"1" + strings.Repeat("==1", 6999):  true,
		"1" + strings.Repeat("||1", 6999):  true,
		"f(1" + strings.Repeat(",1", 9999): false,
	} {
		if _, err := expr.Parse(text); (err == nil) != want {
			t.Errorf("%.20q… of %d bytes: %.80v", text, len(text), err)
		}
	}
}

func TestReferences(t *testing.T) {
	e, err := expr.Parse("  GitHub.ref == f(needs.x, (g(github)[matrix.y])) && !Success() || env['steps'].* == 'runner' ")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"GitHub", "needs", "matrix", "env"}, e.Contexts()); diff != "" {
		t.Errorf("Contexts: (-want +got)\n%s", diff)
	}
	for name, want := range map[string]bool{"F": true, "g": true, "success": true, "github": false, "runner": false, "": false} {
		if e.Calls("nosuch", name) != want {
			t.Errorf("Calls(%q) = %t", name, !want)
		}
	}
	if e.Calls() {
		t.Error("Calls() of no names")
	}
	if want := "GitHub.ref == f(needs.x, (g(github)[matrix.y])) && !Success() || env['steps'].* == 'runner'"; e.Source() != want {
		t.Errorf("Source() = %q", e.Source())
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"", "1", "github.ref == 'x' && !f(a, b[*].c[1.5])", "case(true,1,2)", "((((", "'a''b'", "a.*.b[*]", "0x1f >= .5 || -Infinity", "\u00a0a\ufeff", "a\xff", "!!!x<=y!=z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		e, err := expr.Parse(src)
		if err != nil {
			checkError(t, src, err)
			return
		}
		again, err := expr.Parse(e.Source())
		if err != nil || again.Source() != e.Source() {
			t.Errorf("%q parses, and its source %q does not: %v", src, e.Source(), err)
		}
		for _, bad := range e.Check(nil) {
			checkError(t, src, bad)
		}
	})
}

// checkError tells whether an error's place is one in src.
func checkError(t *testing.T, src string, err error) {
	t.Helper()
	e, ok := err.(*expr.Error)
	if !ok {
		t.Fatalf("%q: error of type %T", src, err)
	}
	if e.Offset < 0 || e.Offset > len(src) || e.Message == "" {
		t.Fatalf("%q: %+v", src, e)
	}
	before := src[:e.Offset]
	want := fmt.Sprint(1+strings.Count(before, "\n"), ":", 1+len([]rune(before[strings.LastIndexByte(before, '\n')+1:])))
	if got := fmt.Sprint(e.Line, ":", e.Column); got != want {
		t.Fatalf("%q: error at %s, want %s", src, got, want)
	}
}

func TestPaths(t *testing.T) {
	for _, test := range []struct {
		src  string
		want [][]string
	}{
		{"github", [][]string{{"github"}}},
		{"github.event['x'].y", [][]string{{"github", "event", "x", "y"}}},
		{"!steps.a.outputs[matrix.n].z && success(needs.b) == env.X", [][]string{{"steps", "a", "outputs"}, {"matrix", "n"}, {"needs", "b"}, {"env", "X"}}},
		{"needs.*.result || a[0].b || a.*.c", [][]string{{"needs"}, {"a"}, {"a"}}},
		{"fromJSON(inputs.x).y", [][]string{{"inputs", "x"}}},
	} {
		e, err := expr.Parse(test.src)
		if err != nil {
			t.Errorf("%s: %v", test.src, err)
			continue
		}
		if diff := cmp.Diff(test.want, e.Paths()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.src, diff)
		}
	}
}

// Whoever lists the functions lists them all: each can be called, with the name as it is spelled.
func TestBuiltIns(t *testing.T) {
	for _, name := range expr.BuiltIns() {
		e, err := expr.Parse(name + "('a', 'b', 'c')")
		if err == nil && len(e.Check(&expr.Scope{})) > 0 || err != nil && !strings.Contains(err.Error(), "parameters supplied: '"+name+"'") {
			t.Errorf("%s is not a function of the language: %v", name, err)
		}
	}
}
