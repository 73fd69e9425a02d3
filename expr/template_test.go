package expr_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/expr"
)

func TestTemplate(t *testing.T) {
	env := suiteEnv(t, []byte(evalContexts))
	for _, test := range []struct{ src, kind, want string }{
		{"", "String", ""},
		{"plain { } }} $ {{ x }}", "String", "plain { } }} $ {{ x }}"},
		{"${{ 1 }}", "Number", "1"},
		{"${{list}}", "Array", "Array"},
		{"${{ null }}", "Null", ""},
		{" ${{ list }}", "String", " Array"},
		{"${{ 1 }}${{ 2 }}", "String", "12"},
		{"a ${{ text }} b ${{ github.ref }}\n", "String", "a Hello b refs/heads/main\n"},
		{"${{ '}}' }}", "String", "}}"},
		{"${{ 'it''s }}' }}!", "String", "it's }}!"},
		{"${{ '${{' }} 1 }}", "String", "${{ 1 }}"},
		{"${{ 1 }}}", "String", "1}"},
		{"$${{ 1 }}", "String", "$1"},
		{"${{\n  true &&\n  'x'\n}}", "String", "x"},
		{"{0}${{ 1 }}{{", "String", "{0}1{{"},
		{"${{ nothing }}|${{ 1.50 }}|${{ true }}|${{ map }}", "String", "|1.5|true|Object"},
	} {
		tpl, err := expr.ParseTemplate(test.src)
		if err != nil {
			t.Errorf("%q: %v", test.src, err)
			continue
		}
		v, err := tpl.Eval(env)
		if err != nil || v.Kind().String() != test.kind || v.Text() != test.want {
			t.Errorf("%q = %s %q (%v), want %s %q", test.src, v.Kind(), v.Text(), err, test.kind, test.want)
		}
		if tpl.Source() != test.src {
			t.Errorf("%q: source %q", test.src, tpl.Source())
		}
		literal, isLiteral := tpl.Literal()
		if isLiteral != (len(tpl.Exprs()) == 0) || isLiteral && literal != test.src {
			t.Errorf("%q: literal %q, %t, and %d expressions", test.src, literal, isLiteral, len(tpl.Exprs()))
		}
	}
}

func TestTemplateSingle(t *testing.T) {
	for src, want := range map[string]string{"${{ insert }}": "insert", "${{  a.b\n}}": "a.b", " ${{ a }}": "", "${{ a }}${{ b }}": "", "a": "", "": ""} {
		tpl, err := expr.ParseTemplate(src)
		if err != nil {
			t.Fatal(err)
		}
		e, ok := tpl.Single()
		if ok != (want != "") || ok && e.Source() != want {
			t.Errorf("%q: single %t", src, ok)
		}
	}
}

func TestTemplateErrors(t *testing.T) {
	env := suiteEnv(t, []byte(evalContexts))
	for _, test := range []struct {
		src          string
		kind         expr.ErrorKind
		line, column int
		want         string
	}{
		{"é ${{ 1", expr.Lexing, 1, 3, "The expression is not closed. An unescaped ${{ sequence was found, but the closing }} sequence was not found."},
		{"${{ 'a }}", expr.Lexing, 1, 1, "The expression is not closed. An unescaped ${{ sequence was found, but the closing }} sequence was not found."},
		{"a\n ${{}}", expr.Parsing, 2, 2, "An expression was expected"},
		{"${{ 1 }}${{ \n }}", expr.Parsing, 1, 9, "An expression was expected"},
		{"é\n${{ 1 }} ${{\n  1 == }}", expr.Parsing, 3, 5, "Unexpected end of expression: '=='. Located at position 3 within expression: 1 =="},
		{"${{ 1 }}${{ a b }}", expr.Parsing, 1, 15, "Unexpected symbol: 'b'. Located at position 3 within expression: a b"},
		{"x ${{ secrets.a }}", expr.Parsing, 1, 7, "Unrecognized named-value: 'secrets'. Located at position 1 within expression: secrets.a"},
		{"${{ 1 }}\n${{ text && nosuch() }}", expr.Parsing, 2, 13, "Unrecognized function: 'nosuch'. Located at position 9 within expression: text && nosuch()"},
		{"x${{ fromJSON('') }}", expr.Evaluation, 1, 6, "empty input"},
	} {
		tpl, err := expr.ParseTemplate(test.src)
		if err == nil {
			_, err = tpl.Eval(env)
		}
		want := &expr.Error{Kind: test.kind, Line: test.line, Column: test.column, Message: test.want}
		got, ok := err.(*expr.Error)
		if !ok {
			t.Errorf("%q: %v", test.src, err)
			continue
		}
		checkError(t, test.src, got)
		want.Offset, want.Err = got.Offset, got.Err
		if diff := cmp.Diff(fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", got)); diff != "" {
			t.Errorf("%q: (-want +got)\n%s", test.src, diff)
		}
	}
	big := expr.NewObject().Set("big", expr.Str(strings.Repeat("x", 1<<20)))
	tpl, err := expr.ParseTemplate(strings.Repeat("${{ big }}", 20))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tpl.Eval(&expr.Env{Contexts: big}); !errors.Is(err, expr.ErrLimit) {
		t.Errorf("a template of 20 MiB: %v", err)
	}
	if _, err := tpl.Eval(nil); err == nil {
		t.Error("a template without contexts is evaluated")
	}
}

func TestCondition(t *testing.T) {
	for _, test := range []struct{ src, want string }{
		{"", "success()"},
		{" \n", "success()"},
		{"true", "success() && (true)"},
		{"  github.foo == 'bar'\n", "success() && (github.foo == 'bar')"},
		{"${{ github.foo == 'bar' }}", "success() && (github.foo == 'bar')"},
		{" ${{ a || b }}\n", "success() && (a || b)"},
		{"always()", "always()"},
		{"!Cancelled()", "!Cancelled()"},
		{"${{ success('build', 'build2') }}", "success('build', 'build2')"},
		{"false || (failure() && true)", "false || (failure() && true)"},
		{"fromJSON(toJSON(success()))", "fromJSON(toJSON(success()))"},
		{"x[always()].y", "x[always()].y"},
		{"always == success", "success() && (always == success)"},
		{"${{ a }} == 'x'", "success() && (format('{0} == ''x''', a))"},
		{"  {${{ a }}}${{ b }}", "success() && (format('{{{0}}}{1}', a, b))"},
		{"!${{ always() }}", "format('!{0}', always())"},
	} {
		e, err := expr.ParseCondition(test.src)
		if err != nil {
			t.Errorf("%q: %v", test.src, err)
			continue
		}
		if e.Source() != test.want {
			t.Errorf("%q: %s, want %s", test.src, e.Source(), test.want)
		}
		if again, err := expr.ParseCondition(e.Source()); err != nil || again.Source() != e.Source() {
			t.Errorf("%q: %s is no condition of its own: %v", test.src, e.Source(), err)
		}
	}
}

func TestConditionEval(t *testing.T) {
	env := suiteEnv(t, []byte(`{"a": "x", "b": null}`))
	status := func(b bool) expr.Function {
		return expr.Function{Max: -1, Call: func([]expr.Value) (expr.Value, error) { return expr.Bool(b), nil }}
	}
	env.Functions = map[string]expr.Function{"success": status(false), "failure": status(true), "always": status(true)}
	for src, want := range map[string]bool{"": false, "true": false, "failure()": true, "always() && a == 'X'": true, "!success() && b": false, "${{ b }} && always()": true} {
		e, err := expr.ParseCondition(src)
		if err != nil {
			t.Fatal(err)
		}
		env.Functions["success"] = status(false)
		if v, err := e.Eval(env); err != nil || v.Truthy() != (want && !strings.HasPrefix(src, "${{")) {
			t.Errorf("%q: %v, %v", src, v, err)
		}
	}
}

func TestConditionErrors(t *testing.T) {
	for src, column := range map[string]int{"  a ==": 5, "${{ a b }}": 7, "${{ a": 1, " é ${{ a ${{ }}": 10, "'x": 1} {
		_, err := expr.ParseCondition(src)
		e, ok := err.(*expr.Error)
		if !ok || e.Column != column {
			t.Errorf("%q: %+v, want an error in column %d", src, err, column)
			continue
		}
		checkError(t, src, e)
	}
	e, err := expr.ParseCondition(" \n\tx${{ a }}${{ nosuch(b) }}")
	if err != nil {
		t.Fatal(err)
	}
	scope, err := expr.NewScope("a", "success(0,0)")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, bad := range e.Check(scope) {
		got = append(got, fmt.Sprintf("%d:%d %s", bad.Line, bad.Column, bad.Message))
	}
	want := []string{
		"2:15 Unrecognized function: 'nosuch'. Located at position 1 within expression: nosuch(b)",
		"2:22 Unrecognized named-value: 'b'. Located at position 8 within expression: nosuch(b)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestCheck(t *testing.T) {
	scope, err := expr.NewScope("github", "Needs", "hashFiles(1,255)", "always(0,0)", "success(0,MAX)")
	if err != nil {
		t.Fatal(err)
	}
	for src, want := range map[string][]string{
		"GITHUB.x == needs.y && toJSON(1) && HASHFILES('a') && success(1,2,3)": nil,
		"secrets.x || github.y || Env": {
			"1:5 Unrecognized named-value: 'secrets'. Located at position 1 within expression: secrets.x || github.y || Env",
			"1:30 Unrecognized named-value: 'Env'. Located at position 26 within expression: secrets.x || github.y || Env",
		},
		"always(env.x)": {
			"1:5 Too many parameters supplied: 'always'. Located at position 1 within expression: always(env.x)",
			"1:12 Unrecognized named-value: 'env'. Located at position 8 within expression: always(env.x)",
		},
		"cancelled()": {"1:5 Unrecognized function: 'cancelled'. Located at position 1 within expression: cancelled()"},
	} {
		tpl, err := expr.ParseTemplate("${{ " + src + " }}")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range tpl.Check(scope) {
			got = append(got, fmt.Sprintf("%d:%d %s", e.Line, e.Column, e.Message))
			if e.Kind != expr.Parsing {
				t.Errorf("%s: kind %s", src, e.Kind)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", src, diff)
		}
	}
	tpl, err := expr.ParseTemplate(strings.Repeat("${{ a || b || c }}", 1000))
	if err != nil {
		t.Fatal(err)
	}
	if n := len(tpl.Check(nil)); n != 20 {
		t.Errorf("%d errors of many, want 20", n)
	}
	for _, bad := range []string{"f(", "f(1)", "f(1,2", "f(a,2)", "f(1,b)"} {
		if s, err := expr.NewScope("github", bad); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("scope %s: %v, %v", bad, s, err)
		}
	}
}

func FuzzTemplate(f *testing.F) {
	for _, s := range []string{"", "a ${{ text }} b", "${{ 'a}}''' }}${{ list[0] }}", "${{", "}}", "${{}}", "$${{ 1 }}}}", "  x${{ always() }}", "${{ a\n.b }} == ${{ 1 }}"} {
		f.Add(s)
	}
	v, err := expr.FromJSON([]byte(evalContexts))
	if err != nil {
		f.Fatal(err)
	}
	env := &expr.Env{Contexts: v.Object(), Limits: expr.Limits{Steps: 100_000, Bytes: 1 << 20}}
	f.Fuzz(func(t *testing.T, src string) {
		if e, err := expr.ParseCondition(src); err != nil {
			checkError(t, src, err)
		} else if again, err := expr.ParseCondition(e.Source()); err == nil && again.Source() != e.Source() && !strings.Contains(e.Source(), "${{") {
			t.Errorf("%q: condition %s reads as %s", src, e.Source(), again.Source())
		}
		tpl, err := expr.ParseTemplate(src)
		if err != nil {
			checkError(t, src, err)
			return
		}
		if literal, ok := tpl.Literal(); ok && literal != src {
			t.Errorf("%q became %q", src, literal)
		}
		for _, bad := range tpl.Check(nil) {
			checkError(t, src, bad)
		}
		if _, err := tpl.Eval(env); err != nil {
			checkError(t, src, err)
		}
	})
}
