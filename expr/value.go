package expr

import (
	"encoding/json"
	"math"
	"slices"
	"strconv"
)

// Kind is the type of a Value.
type Kind uint8

// The types of the language.
const (
	KindNull Kind = iota
	KindBoolean
	KindNumber
	KindString
	KindArray
	KindObject
)

var kindNames = [...]string{"Null", "Boolean", "Number", "String", "Array", "Object"}

// String returns the name as GitHub writes it: Null, Boolean, Number, String, Array or Object.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "Kind(" + strconv.Itoa(int(k)) + ")"
}

// Value is a value of the language. It is immutable and safe for concurrent use; the zero Value is null.
// Arrays and objects are references: copies of a Value share them, and Equal compares their identity.
type Value struct {
	kind Kind
	num  float64 // of a Number; 1 for true
	str  string
	arr  *array
	obj  *Object
}

// array is what an Array refers to. filtered marks the result of an object filter (.* or [*]): to index
// it means to index each of its items.
type array struct {
	items    []Value
	filtered bool
}

// Null returns null.
func Null() Value { return Value{} }

// Bool returns a Boolean.
func Bool(b bool) Value {
	if b {
		return Value{kind: KindBoolean, num: 1}
	}
	return Value{kind: KindBoolean}
}

// Num returns a Number; NaN, infinities and negative zero are numbers of the language.
func Num(f float64) Value { return Value{kind: KindNumber, num: f} }

// Str returns a String.
func Str(s string) Value { return Value{kind: KindString, str: s} }

// Arr returns a new Array of a copy of items.
func Arr(items ...Value) Value { return newArray(slices.Clone(items), false) }

// Obj returns the Object o, which must not be changed any more. Nil gives null.
func Obj(o *Object) Value {
	if o == nil {
		return Value{}
	}
	return Value{kind: KindObject, obj: o}
}

func newArray(items []Value, filtered bool) Value {
	return Value{kind: KindArray, arr: &array{items: items, filtered: filtered}}
}

// Kind returns the type.
func (v Value) Kind() Kind { return v.kind }

// Truthy tells whether v counts as true: all but null, false, 0, NaN and the empty string.
func (v Value) Truthy() bool {
	switch v.kind {
	case KindNull:
		return false
	case KindBoolean:
		return v.num != 0
	case KindNumber:
		return v.num != 0 && !math.IsNaN(v.num)
	case KindString:
		return v.str != ""
	default:
		return true
	}
}

// Text returns v as it is spliced into a string: null is empty, an array the word Array, an object the word Object.
func (v Value) Text() string {
	switch v.kind {
	case KindNull:
		return ""
	case KindBoolean:
		return strconv.FormatBool(v.num != 0)
	case KindNumber:
		return formatNumber(v.num)
	case KindString:
		return v.str
	default:
		return v.kind.String()
	}
}

// Float returns v coerced to a number: null is 0, true 1, a string what it spells (empty is 0), all else NaN.
func (v Value) Float() float64 {
	switch v.kind {
	case KindNull, KindBoolean, KindNumber:
		return v.num
	case KindString:
		return parseNumber(v.str)
	default:
		return math.NaN()
	}
}

// Items returns the items of an Array, which must not be changed, and nil for any other kind.
func (v Value) Items() []Value {
	if v.arr == nil {
		return nil
	}
	return v.arr.items
}

// Object returns the object of an Object, and nil for any other kind.
func (v Value) Object() *Object { return v.obj }

// primitive tells whether v is neither an array nor an object.
func (v Value) primitive() bool { return v.kind < KindArray }

// FromAny converts Go data. It knows nil, bool, string, all integers and floats, json.Number, Value, *Object, []any, []string,
// []Value, map[string]any, map[string]string and map[string]Value; maps are put in the order of their keys.
// Anything else is a bug of the caller, and panics. Not for foreign data: see FromJSON.
func FromAny(v any) Value {
	switch v := v.(type) {
	case nil:
		return Value{}
	case Value:
		return v
	case *Object:
		return Obj(v)
	case bool:
		return Bool(v)
	case string:
		return Str(v)
	case json.Number:
		return Num(parseNumber(v.String()))
	case []Value:
		return Arr(v...)
	case []string:
		return arrayOf(v)
	case []any:
		return arrayOf(v)
	case map[string]any:
		return objectOf(v)
	case map[string]string:
		return objectOf(v)
	case map[string]Value:
		return objectOf(v)
	default:
		return Num(numberOf(v))
	}
}

func numberOf(v any) float64 {
	switch v := v.(type) {
	case int:
		return float64(v)
	case int8:
		return float64(v)
	case int16:
		return float64(v)
	case int32:
		return float64(v)
	case int64:
		return float64(v)
	case uint:
		return float64(v)
	case uint8:
		return float64(v)
	case uint16:
		return float64(v)
	case uint32:
		return float64(v)
	case uint64:
		return float64(v)
	case float32:
		return float64(v)
	case float64:
		return v
	default:
		panic("expr.FromAny: no value of the language")
	}
}

func arrayOf[T any](list []T) Value {
	items := make([]Value, len(list))
	for i, x := range list {
		items[i] = FromAny(x)
	}
	return newArray(items, false)
}

func objectOf[T any](m map[string]T) Value {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	o := NewObject()
	for _, k := range keys {
		o.Set(k, FromAny(m[k]))
	}
	return Obj(o)
}

// Interface returns v as Go data: nil, bool, float64, string, []any or map[string]any.
// A lazy value that cannot be loaded becomes nil; use Object.Get to see why.
func (v Value) Interface() any {
	switch v.kind {
	case KindNull:
		return nil
	case KindBoolean:
		return v.num != 0
	case KindNumber:
		return v.num
	case KindString:
		return v.str
	case KindArray:
		list := make([]any, len(v.arr.items))
		for i, item := range v.arr.items {
			list[i] = item.Interface()
		}
		return list
	default:
		m := make(map[string]any, v.obj.Len())
		for i, key := range v.obj.Keys() {
			item, err := v.obj.at(i)
			if err != nil {
				item = Value{}
			}
			m[key] = item.Interface()
		}
		return m
	}
}
