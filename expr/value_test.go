package expr_test

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr/expr"
)

func TestValue(t *testing.T) {
	object := expr.NewObject().Set("B", expr.Num(1)).Set("a", expr.Null())
	for _, test := range []struct {
		v      expr.Value
		kind   string
		truthy bool
		text   string
		float  float64
		json   string
	}{
		{expr.Value{}, "Null", false, "", 0, "null"},
		{expr.Null(), "Null", false, "", 0, "null"},
		{expr.Bool(true), "Boolean", true, "true", 1, "true"},
		{expr.Bool(false), "Boolean", false, "false", 0, "false"},
		{expr.Num(0), "Number", false, "0", 0, "0"},
		{expr.Num(math.Copysign(0, -1)), "Number", false, "0", 0, "0"},
		{expr.Num(-1.5), "Number", true, "-1.5", -1.5, "-1.5"},
		{expr.Num(math.NaN()), "Number", false, "NaN", math.NaN(), `"NaN"`},
		{expr.Num(math.Inf(-1)), "Number", true, "-Infinity", math.Inf(-1), `"-Infinity"`},
		{expr.Num(12345678901234567), "Number", true, "1.23456789012346E+16", 12345678901234568, "12345678901234568"},
		{expr.Num(1e21), "Number", true, "1E+21", 1e21, "1e+21"},
		{expr.Num(1e-7), "Number", true, "1E-07", 1e-7, "1e-07"},
		{expr.Str(""), "String", false, "", 0, `""`},
		{expr.Str("0"), "String", true, "0", 0, `"0"`},
		{expr.Str("x\"\\/\b\f\n\r\t\x00\x1f\x7f<é😀\u2028"), "String", true, "x\"\\/\b\f\n\r\t\x00\x1f\x7f<é😀\u2028", math.NaN(), `"x\"\\/\b\f\n\r\t\u0000\u001f` + "\x7f<é😀\u2028\""},
		{expr.Arr(), "Array", true, "Array", math.NaN(), "[]"},
		{expr.Arr(expr.Num(1), expr.Arr()), "Array", true, "Array", math.NaN(), "[1,[]]"},
		{expr.Obj(expr.NewObject()), "Object", true, "Object", math.NaN(), "{}"},
		{expr.Obj(object), "Object", true, "Object", math.NaN(), `{"B":1,"a":null}`},
		{expr.Obj(nil), "Null", false, "", 0, "null"},
	} {
		if got := test.v.Kind().String(); got != test.kind {
			t.Errorf("%s: kind %s, want %s", test.json, got, test.kind)
		}
		if test.v.Truthy() != test.truthy {
			t.Errorf("%s: truthy %t", test.json, !test.truthy)
		}
		if got := test.v.Text(); got != test.text {
			t.Errorf("%s: text %q, want %q", test.json, got, test.text)
		}
		if got := test.v.Float(); got != test.float && !(math.IsNaN(got) && math.IsNaN(test.float)) {
			t.Errorf("%s: float %v, want %v", test.json, got, test.float)
		}
		if got, err := test.v.MarshalJSON(); err != nil || string(got) != test.json || !json.Valid(got) {
			t.Errorf("MarshalJSON gave %s (%v), want %s", got, err, test.json)
		}
	}
	for kind, want := range map[fmt.Stringer]string{expr.Kind(9): "Kind(9)", expr.ErrorKind(9): "ErrorKind(9)", expr.Evaluation: "evaluation"} {
		if kind.String() != want {
			t.Errorf("String() = %s, want %s", kind, want)
		}
	}
}

func TestFromAny(t *testing.T) {
	shared := expr.Arr()
	got := expr.FromAny(map[string]any{
		"nil": nil, "bool": true, "string": "s", "value": shared, "number": json.Number("1.5"),
		"ints":    []any{int(-1), int8(1), int16(1), int32(1), int64(1), uint(1), uint8(1), uint16(1), uint32(1), uint64(1), float32(.5), .25},
		"strings": []string{"a"}, "values": []expr.Value{expr.Null()}, "map": map[string]string{"z": "1", "b": "2"},
		"object": expr.NewObject().Set("k", shared), "valued": map[string]expr.Value{"k": expr.Num(1)},
	})
	want := `{"bool":true,"ints":[-1,1,1,1,1,1,1,1,1,1,0.5,0.25],"map":{"b":"2","z":"1"},"nil":null,"number":1.5,"object":{"k":[]},"string":"s","strings":["a"],"value":[],"valued":{"k":1},"values":[null]}`
	if data, err := got.MarshalJSON(); err != nil || string(data) != want {
		t.Errorf("got %s (%v)\nwant %s", data, err, want)
	}
	if v, _, _ := got.Object().Get("VALUE"); !expr.Equal(v, shared) {
		t.Error("a Value lost its identity")
	}
	var back any
	if err := json.Unmarshal([]byte(want), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(back, got.Interface()); diff != "" {
		t.Errorf("Interface: (-want +got)\n%s", diff)
	}
	defer func() {
		if recover() == nil {
			t.Error("FromAny of a channel did not panic")
		}
	}()
	expr.FromAny(make(chan int))
}

func TestArrIsACopy(t *testing.T) {
	items := []expr.Value{expr.Num(1)}
	v := expr.Arr(items...)
	items[0] = expr.Num(2)
	if v.Items()[0].Float() != 1 || expr.Str("x").Items() != nil || v.Object() != nil {
		t.Error("Arr shares its argument, or Items and Object answer for other kinds")
	}
}

func TestObject(t *testing.T) {
	for _, n := range []int{3, 8, 9, 40} { // with and without an index
		o := expr.NewObject()
		for i := range n {
			o.Set(fmt.Sprintf("Key%d", i), expr.Num(float64(i)))
		}
		o.Set("KEY1", expr.Str("again"))
		o.SetLazy("kEy2", func() (expr.Value, error) { return expr.Str("lazy"), nil })
		if o.Len() != n || len(o.Keys()) != n || o.Keys()[1] != "Key1" {
			t.Errorf("%d keys: %v", n, o.Keys())
		}
		for key, want := range map[string]string{"key0": "0", "key1": "again", "KEY2": "lazy"} {
			if v, ok, err := o.Get(key); v.Text() != want || !ok || err != nil || !o.Has(key) {
				t.Errorf("%d keys: %s = %v, %t, %v", n, key, v, ok, err)
			}
		}
		if _, ok, err := o.Get("key"); ok || err != nil || o.Has("key") {
			t.Errorf("%d keys: there is one too many", n)
		}
	}
	var none *expr.Object
	if _, ok, err := none.Get("x"); ok || err != nil || none.Has("x") || none.Len() != 0 || none.Keys() != nil {
		t.Error("a nil Object is not empty")
	}
}

func TestExactObject(t *testing.T) {
	for _, n := range []int{3, 40} { // without and with an index
		o := expr.NewExactObject()
		for i := range n {
			o.Set(fmt.Sprintf("Key%d", i), expr.Num(float64(i)))
		}
		o.Set("KEY1", expr.Str("another"))
		one, _, _ := o.Get("Key1")
		if other, _, _ := o.Get("KEY1"); one.Text() != "1" || other.Text() != "another" || o.Has("key1") || o.Len() != n+1 {
			t.Errorf("%d keys: %v and %v of %v", n, one, other, o.Keys())
		}
	}
}

func TestUnloadable(t *testing.T) {
	o := expr.NewObject().Set("a", expr.Num(1))
	o.SetLazy("b", func() (expr.Value, error) { return expr.Num(2), fmt.Errorf("no b") })
	v := expr.Arr(expr.Obj(o))
	if got, want := v.JSON(), "[\n  {\n    \"a\": 1,\n    \"b\": null\n  }\n]"; got != want {
		t.Errorf("JSON: %s", got)
	}
	if diff := cmp.Diff([]any{map[string]any{"a": 1.0, "b": nil}}, v.Interface()); diff != "" {
		t.Errorf("Interface: (-want +got)\n%s", diff)
	}
	if _, err := v.MarshalJSON(); err == nil || err.Error() != "no b" {
		t.Errorf("MarshalJSON: %v", err)
	}
}

func TestFromJSON(t *testing.T) {
	for text, want := range map[string]string{
		` {"b":1,"a":[true,false,null,{}],"":"x"} `:         `{"b":1,"a":[true,false,null,{}],"":"x"}`,
		`{"a":1,"A":2,"a":3}`:                               `{"a":3}`,
		`{"A":1,"a":2}`:                                     `{"A":1}`,
		`-0`:                                                `0`,
		`[0,-1.5e3,1E-2,1e999]`:                             `[0,-1500,0.01,"Infinity"]`,
		`"\u0041\ud83d\ude00\ud83d\u0041\ud83d"`:            `"A😀�A�"`,
		`"\ud83d\ud83d\ude00\udc00x"`:                       `"�😀�x"`,
		"\"\\\"\\\\\\/\\b\\f\\n\\r\\t\u2028\"":              "\"\\\"\\\\/\\b\\f\\n\\r\\t\u2028\"",
		"\"a\xffb\"":                                        "\"a\ufffdb\"",
		strings.Repeat("[", 501) + strings.Repeat("]", 501): strings.Repeat("[", 501) + strings.Repeat("]", 501),
	} {
		v, err := expr.FromJSON([]byte(text))
		if err != nil {
			t.Errorf("%.60s: %v", text, err)
			continue
		}
		if got, err := v.MarshalJSON(); err != nil || string(got) != want {
			t.Errorf("%.60s: got %.60s (%v), want %.60s", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                                       "unexpected end of JSON at line 1, column 1",
		"[1,\n 2":                                "unexpected end of JSON at line 2, column 3",
		"[1,]":                                   "unexpected ']' in JSON at line 1, column 4",
		"{\"a\":1,}":                             "unexpected '}' in JSON at line 1, column 8",
		"{\"é\" 1}":                              "unexpected '1' in JSON at line 1, column 6",
		"{1:2}":                                  "unexpected '1' in JSON at line 1, column 2",
		"[1 2]":                                  "unexpected '2' in JSON at line 1, column 4",
		"01":                                     "unexpected '1' in JSON at line 1, column 2",
		"1.":                                     "unexpected end of JSON at line 1, column 3",
		"-":                                      "unexpected end of JSON at line 1, column 2",
		"1e+":                                    "unexpected end of JSON at line 1, column 4",
		"+1":                                     "unexpected '+' in JSON at line 1, column 1",
		"NaN":                                    "unexpected 'N' in JSON at line 1, column 1",
		"truE":                                   "unexpected 'E' in JSON at line 1, column 4",
		"\"a":                                    "unexpected end of JSON at line 1, column 3",
		"\"a\n\"":                                "unexpected '\\n' in JSON at line 1, column 3",
		"\"\\":                                   "unexpected end of JSON at line 1, column 3",
		"\"\\x\"":                                "unexpected 'x' in JSON at line 1, column 3",
		"\"\\u12g4\"":                            "unexpected 'g' in JSON at line 1, column 6",
		"\"\\ud83d\\uzzzz\"":                     "unexpected 'z' in JSON at line 1, column 10",
		"1 // no":                                "unexpected '/' in JSON at line 1, column 3",
		"\ufeff1":                                "unexpected '\\ufeff' in JSON at line 1, column 1",
		strings.Repeat("[", 502):                 "JSON nested deeper than 500",
		strings.Repeat("[", 1e6):                 "JSON nested deeper than 500",
		"[" + strings.Repeat("0,", 2<<20) + "0]": "The maximum allowed memory size was exceeded",
		strings.Repeat(" ", 65<<20):              "The maximum allowed memory size was exceeded",
	} {
		if v, err := expr.FromJSON([]byte(text)); err == nil || err.Error() != want {
			t.Errorf("%.60q: got %s and error %v\nwant error %s", text, v.Kind(), err, want)
		}
	}
}

// FromJSON accepts what encoding/json does and finds the same in it.
func FuzzFromJSON(f *testing.F) {
	for _, s := range []string{`{"a":[1,2.5e-3,null,true],"b":{"c":"\u00e9\ud83d\ude00"}}`, `[[[]]]`, `"\x"`, `-0.0`, `1e400`, `{"a":1,"A":2}`, "\"\xff\"", "nul", "[1,", "\t1\r\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := expr.FromJSON(data)
		if (err == nil) != json.Valid(data) {
			if err != nil && strings.Contains(err.Error(), "nested") {
				return
			}
			t.Fatalf("%q: valid is %t, error is %v", data, json.Valid(data), err)
		}
		if err != nil {
			return
		}
		out, err := v.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		again, err := expr.FromJSON(out)
		if err != nil || again.JSON() != v.JSON() && !strings.Contains(v.JSON(), "Infinity") {
			t.Fatalf("%q became %s, which became %s (%v)", data, out, again.JSON(), err)
		}
		var want, got any
		if json.Unmarshal(data, &want) != nil || json.Unmarshal(out, &got) != nil {
			return // numbers out of range
		}
		if diff := cmp.Diff(want, got); diff != "" && v.Kind() < expr.KindArray { // objects drop keys that differ in case
			t.Fatalf("%q became %s", data, out)
		}
	})
}
