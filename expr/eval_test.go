package expr_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/terraphim/tgr/expr"
)

const evalContexts = `{
	"github": {"Ref": "refs/heads/main", "event": {"labels": [{"name": "bug"}, {"name": "ci", "n": 0}, "plain"]}},
	"list": [1, "two", null, [10, 20], [30], {"a": 1}],
	"map": {"x": {"v": [1, 2]}, "y": {"V": [3]}, "z": "text", "": "nameless"},
	"matrix": [[[1, 2], [3]], [[4]]],
	"text": "Hello", "nothing": null
}`

// TestEval goes through the rules of the language that are easy to get wrong. The right side is an expression's toJSON.
func TestEval(t *testing.T) {
	env := suiteEnv(t, []byte(evalContexts))
	for _, test := range []struct{ expr, want string }{
		// operators give back operands and bind as GitHub's do
		{"null || 0 || 'x' || y()", `"x"`}, {"1 && 'a' && ''", `""`}, {"true || false && false", "true"}, {"!true || true", "true"},
		{"1 < 2 == true", "true"}, {"1 == 1 == 1", "true"}, {"3 > 2 > 1", "false"}, {"2 == 1 < 3", "false"}, {"!'' == true", "true"}, {"!!text.a", "false"},
		// comparison: coercion, folding, order
		{"'ABC' == 'abc'", "true"}, {"'b' > 'A'", "true"}, {"'Z' < '_'", "true"}, {"'10' < '9'", "true"}, {"'10' < 9", "false"}, {"'' == 0", "true"},
		{"'1e1' == 10", "true"}, {"'10' == '1e1'", "false"}, {"true == '1'", "true"}, {"true == 'true'", "false"}, {"null == ''", "true"}, {"null == false", "true"},
		{"null >= 0", "true"}, {"null < 1", "true"}, {"null > null", "false"}, {"null >= null", "true"}, {"NaN == NaN", "false"}, {"NaN != NaN", "true"},
		{"NaN <= NaN", "false"}, {"'x' < 1", "false"}, {"'x' >= 1", "false"}, {"true > false", "true"}, {"false >= false", "true"}, {"true < false", "false"},
		{"list == list", "true"}, {"list >= list", "true"}, {"list > list", "false"}, {"list < 1", "false"}, {"map == list", "false"}, {"list == 'Array'", "false"},
		{"list[3] == list[3]", "true"}, {"list.* == list.*", "false"}, {"fromJSON('{}') == fromJSON('{}')", "false"}, {"github == GITHUB", "true"},
		// properties and indexes
		{"github.REF", `"refs/heads/main"`}, {"github['ref']", `"refs/heads/main"`}, {"github.nosuch", "null"}, {"github.nosuch.deeper[1].x", "null"},
		{"map['']", `"nameless"`}, {"map[null]", `"nameless"`}, {"map[list]", "null"}, {"list[0]", "1"}, {"list['1']", `"two"`}, {"list[1.9]", `"two"`},
		{"list[true]", `"two"`}, {"list[null]", "1"}, {"list['']", "1"}, {"list['x']", "null"}, {"list[-1]", "null"}, {"list[99]", "null"}, {"list[Infinity]", "null"},
		{"list[NaN]", "null"}, {"list.a", "null"}, {"text[0]", "null"}, {"text.x", "null"}, {"nothing.x", "null"}, {"(github).Ref", `"refs/heads/main"`},
		{"fromJSON('[5]')[0]", "5"}, {"github.event.labels[0]['NAME']", `"bug"`}, {"list[list[0]]", `"two"`},
		// filters
		{"github.event.labels.*.name", `["bug","ci"]`}, {"github.event.labels.*.n", "[0]"}, {"github.event.labels[*]['name']", `["bug","ci"]`},
		{"map.*", `[{"v":[1,2]},{"V":[3]},"text","nameless"]`}, {"map.*.v", "[[1,2],[3]]"}, {"map.*.v.*", "[1,2,3]"}, {"map.*.v[0]", "[1,3]"}, {"map.*.v[1]", "[2]"},
		{"list.*[0]", "[10,30]"}, {"list.*[1]", "[20]"}, {"list.*.*", "[10,20,30,1]"}, {"list.*.a", "[1]"}, {"matrix.*.*", "[[1,2],[3],[4]]"}, {"matrix[*][*][*]", "[1,2,3,4]"},
		{"matrix.*[0]", "[[1,2],[4]]"}, {"matrix.*[0][0]", "[1,4]"}, {"matrix.*.*.x", "[]"}, {"text.*", "[]"}, {"nothing.*.x", "[]"}, {"github.Ref.*.*", "[]"},
		{"(map.*).v", "[[1,2],[3]]"}, {"(map.* || 1).v", "[[1,2],[3]]"}, {"case(true, map.*, 1).v", "[[1,2],[3]]"}, {"fromJSON(toJSON(map.*)).v", "null"},
		// functions
		{"contains('Hello', 'ELL')", "true"}, {"contains(list, 'TWO')", "true"}, {"contains(list, list[3])", "true"}, {"contains(list, fromJSON('[30]'))", "false"},
		{"contains(list, '')", "true"}, {"contains(map, 'text')", "false"}, {"contains(map.*, 'TEXT')", "true"}, {"contains('', '')", "true"}, {"contains(null, '')", "true"},
		{"contains('a', list)", "false"}, {"contains(123, 2)", "true"}, {"contains('straße', 'STRASSE')", "false"}, {"contains('xΣy', 'ς')", "true"},
		{"endsWith('Hello', 'LO')", "true"}, {"endsWith('Hello', '')", "true"}, {"endsWith('lo', 'hello')", "false"}, {"endsWith(list, 'Array')", "false"},
		{"startsWith('Array', list)", "false"}, {"startsWith(true, 'TR')", "true"},
		{"join(list)", `"1,two,,Array,Array,Object"`}, {"join(list, list)", `"1,two,,Array,Array,Object"`}, {"join(map.*, '-')", `"Object-Object-text-nameless"`},
		{"join(map)", `""`}, {"join('x', 'y')", `"x"`}, {"join(null)", `""`}, {"join(list[3], null)", `"1020"`}, {"join(fromJSON('[]'), ',')", `""`},
		{"format('{0}{1}{0}', 1, list)", `"1Array1"`}, {"format('{{{0}}}', 1)", `"{1}"`}, {"format('{00}', 1)", `"1"`}, {"format(5, 1)", `"5"`}, {"format('{0:}', 1)", `"1"`},
		{"toJSON(text)", `"\"Hello\""`}, {"toJSON(1e20)", `"1E+20"`}, {"toJSON(NaN)", `"NaN"`}, {"fromJSON(true)", "true"}, {"fromJSON(' 1e1 ')", "10"},
		{"case(false, 1, true, 2, 3)", "2"}, {"case(false, 1, 2)", "2"}, {"case(true, 'first', fromJSON(''), 'not reached', format('{'))", `"first"`},
		{"'it''s' == 'it''''s'", "false"}, {"'''a''b'''", `"'a'b'"`}, {"format('a',)", `"a"`},
	} {
		text := strings.ReplaceAll(test.expr, "y()", "fromJSON('')")
		v, err := evalText(text, env)
		if err != nil {
			t.Errorf("%s: %v", test.expr, err)
			continue
		}
		got, err := v.MarshalJSON()
		if err != nil || string(got) != test.want {
			t.Errorf("%s = %s (%v), want %s", test.expr, got, err, test.want)
		}
	}
}

func TestEvalErrors(t *testing.T) {
	env := suiteEnv(t, []byte(evalContexts))
	broken := errors.New("broken pipe")
	env.Functions = map[string]expr.Function{
		"hashfiles": {Min: 1, Max: 255, Call: func([]expr.Value) (expr.Value, error) { return expr.Null(), broken }},
		"success":   {Max: -1, Call: func(a []expr.Value) (expr.Value, error) { return expr.Num(float64(len(a))), nil }},
		"always":    {Call: func([]expr.Value) (expr.Value, error) { return expr.Bool(true), nil }},
	}
	for _, test := range []struct {
		expr   string
		kind   expr.ErrorKind
		column int
		want   string
	}{
		{"secrets", expr.Parsing, 1, "Unrecognized named-value: 'secrets'. Located at position 1 within expression: secrets"},
		{"true || 'é' == secrets.x", expr.Parsing, 16, "Unrecognized named-value: 'secrets'. Located at position 16 within expression: true || 'é' == secrets.x"},
		{"false && nosuch(1)", expr.Parsing, 10, "Unrecognized function: 'nosuch'. Located at position 10 within expression: false && nosuch(1)"},
		{"ALWAYS(1)", expr.Parsing, 1, "Too many parameters supplied: 'ALWAYS'. Located at position 1 within expression: ALWAYS(1)"},
		{"text == hashFiles('a')", expr.Evaluation, 9, "broken pipe"},
		{"1 == fromJSON(' ')", expr.Evaluation, 6, "empty input"},
		{"fromJSON('{\n\"a\" 1}')", expr.Evaluation, 1, "Error parsing JSON when evaluating fromJson: unexpected '1' in JSON at line 2, column 5"},
		{"fromJSON('[1')", expr.Evaluation, 1, "Error parsing JSON when evaluating fromJson: unexpected end of JSON at line 1, column 3"},
		{"case(1, 2, 3)", expr.Evaluation, 6, "case predicate must evaluate to a boolean value"},
		{"case(false, 2, 'true', 3, 4)", expr.Evaluation, 16, "case predicate must evaluate to a boolean value"},
		{"format('{0} {2}', 1, 2)", expr.Evaluation, 1, "The following format string references more arguments than were supplied: {0} {2}"},
		{"format('{0x}', 1)", expr.Evaluation, 1, "The following format string is invalid: {0x}"},
		{"format('{256}', 1)", expr.Evaluation, 1, "The following format string is invalid: {256}"},
		{"format('{0:N', 1)", expr.Evaluation, 1, "The following format string is invalid: {0:N"},
		{"format('{0:}}', 1)", expr.Evaluation, 1, "The following format string is invalid: {0:}}"},
		{"format('{0:}}}', 1)", expr.Evaluation, 1, "The format specifiers '}' are not valid for objects of type 'Number'"},
		{"format('{0:N}', 1)", expr.Evaluation, 1, "The format specifiers 'N' are not valid for objects of type 'Number'"},
	} {
		v, err := evalText(test.expr, env)
		e, ok := err.(*expr.Error)
		if !ok {
			t.Errorf("%s: got %v, %v", test.expr, v, err)
			continue
		}
		if e.Kind != test.kind || e.Message != test.want || e.Column != test.column {
			t.Errorf("%s: got %v error at %d: %s\nwant %v error at %d: %s", test.expr, e.Kind, e.Column, e.Message, test.kind, test.column, test.want)
		}
	}
	if _, err := evalText("hashFiles('a')", env); !errors.Is(err, broken) {
		t.Errorf("%v does not wrap the function's error", err)
	}
	if v, err := evalText("Success(1, 2, 3) && always()", env); err != nil || !v.Truthy() {
		t.Errorf("functions: %v, %v", v, err)
	}
	if v, err := evalText("1", nil); err != nil || v.Float() != 1 {
		t.Errorf("nil Env: %v, %v", v, err)
	}
}

// A lazy context is loaded when an expression reaches it, at most once, by however many evaluations.
func TestLazy(t *testing.T) {
	loads := 0
	fails := errors.New("vault sealed")
	contexts := expr.NewObject()
	contexts.SetLazy("steps", func() (expr.Value, error) {
		loads++
		return expr.FromAny(map[string]any{"a": map[string]any{"outputs": "x"}}), nil
	})
	failures := 0
	contexts.SetLazy("secrets", func() (expr.Value, error) { failures++; return expr.Str("half"), fails })
	contexts.Set("all", expr.Obj(contexts))
	env := &expr.Env{Contexts: contexts}
	for text, want := range map[string]string{"true || steps.a": "true", "false && secrets": "false", "secrets == '' && true": ""} {
		v, err := evalText(text, env)
		if want == "" {
			if !errors.Is(err, fails) {
				t.Errorf("%s: %v", text, err)
			}
		} else if err != nil || v.Text() != want {
			t.Errorf("%s = %v, %v", text, v, err)
		}
	}
	if loads != 0 {
		t.Fatal("loaded without need")
	}
	e, err := expr.Parse("steps.a.outputs == 'x' && steps == steps")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if v, err := e.Eval(env); err != nil || !v.Truthy() {
				t.Errorf("%v, %v", v, err)
			}
		})
	}
	wg.Wait()
	for _, text := range []string{"secrets.x", "toJSON(all)", "all.*"} {
		if _, err := evalText(text, env); !errors.Is(err, fails) {
			t.Errorf("%s: %v, want the loader's error", text, err)
		}
	}
	if loads != 1 || failures != 1 {
		t.Errorf("loaded %d and %d times", loads, failures)
	}
	if v, ok, err := contexts.Get("SECRETS"); !ok || !errors.Is(err, fails) || v.Kind() != expr.KindNull {
		t.Errorf("Get of what cannot be loaded: %v, %t, %v", v, ok, err)
	}
}

// No expression, however mean, may take more than a moment or more memory than its limit.
func TestLimits(t *testing.T) {
	big := strings.Repeat("é", 1<<20)
	list := make([]string, 1<<16)
	contexts := expr.NewObject().
		Set("big", expr.Str(big)).
		Set("control", expr.Str(strings.Repeat("\x01", 4<<20))).
		Set("list", expr.FromAny(list)).
		Set("bigs", expr.FromAny([]string{big, big, big, big, big, big, big, big})).
		Set("json", expr.Str("["+strings.Repeat("0,", 1<<18)+"0]"))
	nest := func(n int, before, core, after string) string {
		return strings.Repeat(before, n) + core + strings.Repeat(after, n)
	}
	repeat := func(text string, n int) string { return text + strings.Repeat(" || "+text, n-1) }
	for name, text := range map[string]string{
		"format in format":  nest(30, "format('{0}{0}{0}{0}', ", "'x'", ")"),
		"toJSON in toJSON":  nest(40, "toJSON(", "'\"'", ")"),
		"join":              "join(list, big)",
		"join of big":       "join(bigs)",
		"escapes":           "toJSON(control)",
		"numbers":           repeat("big == 1", 1000),
		"equals":            repeat("big != bigs[7]", 1000),
		"contains text":     repeat("contains(big, 'x')", 600),
		"contains list":     repeat("contains(list, 'x')", 600),
		"contains big":      repeat("contains(bigs, 1)", 600),
		"prefix":            repeat("startsWith(big, bigs[0]) == 2", 600),
		"index":             repeat("list[big]", 1000),
		"filters":           repeat("list.*.x.*.x[0] == 1", 600),
		"fromJSON":          "fromJSON(json)",
		"fromJSON of words": repeat("fromJSON(format('\"{0}\"', big)) == 1", 400),
	} {
		v, err := evalText(text, &expr.Env{Contexts: contexts})
		if !errors.Is(err, expr.ErrLimit) {
			t.Errorf("%s: got %s of %d bytes and %v, want a limit", name, v.Kind(), len(v.Text()), err)
		}
		var e *expr.Error
		if !errors.As(err, &e) || e.Kind != expr.Evaluation {
			t.Errorf("%s: error %#v", name, err)
		}
	}
}

func TestOwnLimits(t *testing.T) {
	for _, test := range []struct {
		expr   string
		limits expr.Limits
		ok     bool
	}{
		{"1 == 1", expr.Limits{Steps: 5}, true},
		{"1 == 1 && 2 == 2", expr.Limits{Steps: 5}, false},
		{"format('{0}', '12345678')", expr.Limits{Bytes: 8}, true},
		{"format('{0}', '123456789')", expr.Limits{Bytes: 8}, false},
	} {
		_, err := evalText(test.expr, &expr.Env{Limits: test.limits})
		if (err == nil) != test.ok || !test.ok && !errors.Is(err, expr.ErrLimit) {
			t.Errorf("%s within %+v: %v", test.expr, test.limits, err)
		}
	}
	tpl, err := expr.ParseTemplate("a${{ format('{0}', '1234') }}b${{ format('{0}', '1234') }}")
	if err != nil {
		t.Fatal(err)
	}
	for bytes, want := range map[int]bool{17: false, 18: true} { // each text is made twice: by format and by the template
		if _, err := tpl.Eval(&expr.Env{Limits: expr.Limits{Bytes: bytes}}); (err == nil) != want {
			t.Errorf("template within %d bytes: %v", bytes, err)
		}
	}
}

func FuzzEval(f *testing.F) {
	for _, s := range []string{"github.event.labels.*.name", "format('{0} {1}', list, map)", "fromJSON('[1,{\"a\":2}]')[1].a", "join(list.*, '-') < 'x'", "case(text == 'hello', map.*.v[0], 3)",
		"toJSON(github)", "contains(matrix[*][*], 1)", "list[list[0]] >= .5", "endsWith(toJSON(map), '}') && !nothing"} {
		f.Add(s)
	}
	v, err := expr.FromJSON([]byte(evalContexts))
	if err != nil {
		f.Fatal(err)
	}
	env := &expr.Env{Contexts: v.Object(), Limits: expr.Limits{Steps: 100_000, Bytes: 1 << 20}}
	f.Fuzz(func(t *testing.T, src string) {
		v, err := evalText(src, env)
		if err != nil {
			checkError(t, src, err)
			return
		}
		w, err := evalText(src, env)
		if err != nil || w.JSON() != v.JSON() {
			t.Errorf("%q gives %s, then %s (%v)", src, v.JSON(), w.JSON(), err)
		}
		if len(v.Text()) > 1<<20+len(src)+len(evalContexts) {
			t.Errorf("%q made %d bytes", src, len(v.Text()))
		}
		_, _, _ = v.Truthy(), v.Float(), fmt.Sprint(v.Interface())
	})
}
