package github

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// jsonValue draws any JSON value.
func jsonValue(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Map(rapid.Float64Range(-1e18, 1e18), func(f float64) any { return f }),
		rapid.Map(jsonString(), func(s string) any { return s }),
	}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.Map(rapid.SliceOfN(jsonValue(depth-1), 0, 4), func(s []any) any { return s }),
		rapid.Map(rapid.MapOfN(jsonString(), jsonValue(depth-1), 0, 24), func(m map[string]any) any { return m }))...)
}

// jsonString draws text without NUL, which a payload may not hold.
func jsonString() *rapid.Generator[string] {
	return rapid.Map(rapid.StringN(0, 12, -1), func(s string) string {
		return strings.ReplaceAll(strings.ToValidUTF8(s, "?"), "\x00", "0")
	})
}

// TestParseFieldsAgrees checks that what encoding/json writes is accepted, and that both read the same from it.
func TestParseFieldsAgrees(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		inner := rapid.MapOfN(jsonString(), jsonValue(2), 0, 20).Draw(t, "inner")
		text := jsonString().Draw(t, "text")
		inner["b"] = text
		body, err := json.Marshal(map[string]any{"a": inner, "other": inner})
		if err != nil {
			t.Fatal(err)
		}
		if rapid.Bool().Draw(t, "indented") {
			if body, err = json.MarshalIndent(map[string]any{"a": inner}, " ", "\t"); err != nil {
				t.Fatal(err)
			}
		}
		f, err := parseFields(body, []string{"a.b"})
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if got := f["a.b"]; got.kind != isString || got.text != text {
			t.Errorf("a.b = %+v, want %q", got, text)
		}
		if got := f["a"]; got.kind != isObject || len(f) != 2 {
			t.Errorf("fields %+v", f)
		}
	})
}

func TestParseFieldsKinds(t *testing.T) {
	f, err := parseFields([]byte(` {"s":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00","n":-0.5E+10,"t":true,"f":false,"z":null,"o":{},"l":[1,[],{}]} `),
		[]string{"s", "n", "t", "f", "z", "o", "l", "absent"})
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]value{
		"s": {isString, "\"\\/\b\f\n\r\té😀"}, "n": {isNumber, "-0.5E+10"}, "t": {isBool, "true"}, "f": {isBool, "false"},
		"z": {isNull, "null"}, "o": {isObject, ""}, "l": {isArray, ""},
	} {
		if f[path] != want {
			t.Errorf("%s = %+v, want %+v", path, f[path], want)
		}
	}
	if spoof, err := parseFields([]byte(`{"a.b":"x","":{"a":{"b":"y"}},"a":{"":1,"c":2}}`), []string{"a.b"}); err != nil || len(spoof) != 1 {
		t.Errorf("names with dots, or none, were taken for paths: %+v, %v", spoof, err)
	}
	if len(f) != 7 {
		t.Errorf("%d fields", len(f))
	}
}

func TestParseFieldsBounds(t *testing.T) {
	nested := func(n int) string { return `{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + "}" }
	for _, tt := range []struct {
		body string
		ok   bool
	}{
		{nested(maxDepth), true},
		{nested(maxDepth + 1), false},
		{`{"a":[` + strings.Repeat("0,", maxValues-4) + "0]}", true},
		{`{"a":[` + strings.Repeat("0,", maxValues) + "0]}", false},
		{`{"a":"` + strings.Repeat("x", maxString) + `"}`, true},
		{`{"a":"` + strings.Repeat("x", maxString+1) + `"}`, false},
	} {
		if _, err := parseFields([]byte(tt.body), nil); (err == nil) != tt.ok {
			t.Errorf("%s (%d bytes): %v", fmt.Sprintf("%.20s", tt.body), len(tt.body), err)
		}
	}
	// Every beginning of a document is an error, and none of them a panic.
	doc := `{"a":{"b":["\u00e9\ud83d\ude00\n",-1.5e3,true,false,null,{}]}}`
	for i := range len(doc) {
		if _, err := parseFields([]byte(doc[:i]), []string{"a.b"}); err == nil {
			t.Errorf("accepted %q", doc[:i])
		}
	}
}
