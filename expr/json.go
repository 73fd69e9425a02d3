package expr

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	// maxJSONDepth is how deep JSON may nest: far more than data of any service, far less than a stack holds.
	maxJSONDepth = 500
	// maxJSONBytes is what the value that FromJSON makes may take: enough for the largest webhook, 25 MB.
	maxJSONBytes = 64 << 20
)

// FromJSON reads one JSON value (RFC 8259) and keeps the order of keys. Of a key that comes twice the last value counts;
// of keys that differ only in case the first. Bytes and escapes that are no Unicode become U+FFFD.
// Values nested deeper than 500 or larger than 64 MiB in memory are refused.
func FromJSON(data []byte) (Value, error) {
	budget := maxJSONBytes
	if len(data) > budget {
		return Value{}, errBytes
	}
	return readJSON(string(data), &budget)
}

// readJSON reads text, and takes what the value costs in memory from budget.
func readJSON(text string, budget *int) (Value, error) {
	if !utf8.ValidString(text) {
		text = strings.Map(func(c rune) rune { return c }, text) // each byte that is no Unicode becomes U+FFFD
	}
	r := jsonReader{text: text, budget: budget}
	v, err := r.value(0)
	if err != nil {
		return Value{}, err
	}
	r.space()
	if r.pos < len(r.text) {
		return Value{}, r.unexpected()
	}
	return v, nil
}

// jsonReader reads values from text. Strings without escapes share its memory.
type jsonReader struct {
	text   string
	pos    int
	budget *int
}

func (r *jsonReader) space() {
	for r.pos < len(r.text) {
		switch r.text[r.pos] {
		case ' ', '\t', '\n', '\r':
			r.pos++
		default:
			return
		}
	}
}

// accept takes c, after white space, if it is next.
func (r *jsonReader) accept(c byte) bool {
	r.space()
	if r.pos < len(r.text) && r.text[r.pos] == c {
		r.pos++
		return true
	}
	return false
}

func (r *jsonReader) unexpected() error {
	line, column := lineColumn(r.text, r.pos)
	what := "unexpected end of JSON"
	if r.pos < len(r.text) {
		c, _ := utf8.DecodeRuneInString(r.text[r.pos:])
		what = fmt.Sprintf("unexpected %q in JSON", c)
	}
	return fmt.Errorf("%s at line %d, column %d", what, line, column)
}

var errJSONDepth = errors.New("JSON nested deeper than " + strconv.Itoa(maxJSONDepth))

func (r *jsonReader) value(depth int) (Value, error) {
	if *r.budget -= valueSize; *r.budget < 0 {
		*r.budget = 0
		return Value{}, errBytes
	}
	if depth > maxJSONDepth {
		return Value{}, errJSONDepth
	}
	r.space()
	if r.pos == len(r.text) {
		return Value{}, r.unexpected()
	}
	switch r.text[r.pos] {
	case '{':
		return r.object(depth)
	case '[':
		return r.array(depth)
	case '"':
		s, err := r.string()
		return Str(s), err
	case 't':
		return r.word("true", Bool(true))
	case 'f':
		return r.word("false", Bool(false))
	case 'n':
		return r.word("null", Null())
	default:
		return r.number()
	}
}

func (r *jsonReader) word(word string, v Value) (Value, error) {
	for i := range len(word) {
		if r.pos == len(r.text) || r.text[r.pos] != word[i] {
			return Value{}, r.unexpected()
		}
		r.pos++
	}
	return v, nil
}

func (r *jsonReader) array(depth int) (Value, error) {
	r.pos++
	var items []Value
	if r.accept(']') {
		return newArray(nil, false), nil
	}
	for {
		v, err := r.value(depth + 1)
		if err != nil {
			return Value{}, err
		}
		items = append(items, v)
		switch {
		case r.accept(','):
		case r.accept(']'):
			return newArray(items, false), nil
		default:
			return Value{}, r.unexpected()
		}
	}
}

func (r *jsonReader) object(depth int) (Value, error) {
	r.pos++
	o := NewObject()
	if r.accept('}') {
		return Obj(o), nil
	}
	for {
		r.space()
		if r.pos == len(r.text) || r.text[r.pos] != '"' {
			return Value{}, r.unexpected()
		}
		key, err := r.string()
		if err != nil {
			return Value{}, err
		}
		if !r.accept(':') {
			return Value{}, r.unexpected()
		}
		*r.budget -= 2 * valueSize // the key and its place in the index; value refuses what is too much
		v, err := r.value(depth + 1)
		if err != nil {
			return Value{}, err
		}
		if i := o.find(key); i < 0 || o.keys[i] == key {
			o.Set(key, v)
		}
		switch {
		case r.accept(','):
		case r.accept('}'):
			return Obj(o), nil
		default:
			return Value{}, r.unexpected()
		}
	}
}

func (r *jsonReader) number() (Value, error) {
	start := r.pos
	if r.text[r.pos] == '-' {
		r.pos++
	}
	switch n := countDigits(r.text[r.pos:]); {
	case n == 0:
		return Value{}, r.unexpected()
	case r.text[r.pos] == '0':
		r.pos++ // and no digit after it: what follows a number is never a digit
	default:
		r.pos += n
	}
	if r.pos < len(r.text) && r.text[r.pos] == '.' {
		r.pos++
		if err := r.digits(); err != nil {
			return Value{}, err
		}
	}
	if r.pos < len(r.text) && (r.text[r.pos] == 'e' || r.text[r.pos] == 'E') {
		r.pos++
		if r.pos < len(r.text) && (r.text[r.pos] == '+' || r.text[r.pos] == '-') {
			r.pos++
		}
		if err := r.digits(); err != nil {
			return Value{}, err
		}
	}
	f, _ := strconv.ParseFloat(r.text[start:r.pos], 64) // beyond the range it is an infinity
	return Num(f), nil
}

// digits takes one digit or more.
func (r *jsonReader) digits() error {
	n := countDigits(r.text[r.pos:])
	r.pos += n
	if n == 0 {
		return r.unexpected()
	}
	return nil
}

func (r *jsonReader) string() (string, error) {
	r.pos++
	start := r.pos
	var b []byte // nil until there is an escape
	for r.pos < len(r.text) {
		switch c := r.text[r.pos]; {
		case c == '"':
			s := r.text[start:r.pos]
			if b != nil {
				s = string(append(b, s...))
			}
			r.pos++
			*r.budget -= len(s)
			return s, nil
		case c < ' ':
			return "", r.unexpected()
		case c == '\\':
			b = append(b, r.text[start:r.pos]...)
			var err error
			if b, err = r.escape(b); err != nil {
				return "", err
			}
			start = r.pos
		default:
			r.pos++
		}
	}
	return "", r.unexpected()
}

// escape reads a backslash and what belongs to it, and appends what it stands for.
func (r *jsonReader) escape(b []byte) ([]byte, error) {
	r.pos++
	if r.pos == len(r.text) {
		return nil, r.unexpected()
	}
	if r.text[r.pos] == 'u' {
		unit, err := r.hex4()
		if err != nil {
			return nil, err
		}
		if utf16.IsSurrogate(unit) && strings.HasPrefix(r.text[r.pos:], `\u`) {
			back := r.pos
			r.pos++
			low, err := r.hex4()
			if err != nil {
				return nil, err
			}
			if pair := utf16.DecodeRune(unit, low); pair != utf8.RuneError {
				return utf8.AppendRune(b, pair), nil
			}
			r.pos = back // not a pair: the second stands for itself
		}
		return utf8.AppendRune(b, unit), nil
	}
	const letters, meanings = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
	i := strings.IndexByte(letters, r.text[r.pos])
	if i < 0 {
		return nil, r.unexpected()
	}
	r.pos++
	return append(b, meanings[i]), nil
}

// hex4 reads the u at hand and four hexadecimal digits.
func (r *jsonReader) hex4() (rune, error) {
	r.pos++
	var unit rune
	for range 4 {
		if r.pos == len(r.text) || digitValue(r.text[r.pos]) > 15 {
			return 0, r.unexpected()
		}
		unit = unit<<4 | rune(digitValue(r.text[r.pos]))
		r.pos++
	}
	return unit, nil
}

// JSON returns v as toJSON prints it: indented by two spaces, numbers with at most 15 digits, NaN and infinities
// by name. A lazy value that cannot be loaded is printed as null; MarshalJSON tells why.
func (v Value) JSON() string {
	w := jsonWriter{indent: true, lenient: true}
	_ = w.value(v, 0) // lenient and without a budget, it cannot fail
	return string(w.out)
}

// MarshalJSON returns v as compact JSON, with the order of keys and all digits of numbers;
// NaN, Infinity and -Infinity, which JSON does not have, are strings. The error is that of a lazy value's loader.
func (v Value) MarshalJSON() ([]byte, error) {
	var w jsonWriter
	if err := w.value(v, 0); err != nil {
		return nil, err
	}
	return w.out, nil
}

// jsonWriter writes values to out, with ev within the budget of an evaluation.
type jsonWriter struct {
	out     []byte
	indent  bool // as toJSON prints; else compact
	lenient bool // lazy values that cannot be loaded are null
	ev      *evaluator
	paid    int // of out
}

// pay takes what was written since the last time from the budget.
func (w *jsonWriter) pay() error {
	if w.ev == nil {
		return nil
	}
	n := len(w.out) - w.paid
	w.paid = len(w.out)
	if err := w.ev.read(n); err != nil {
		return err
	}
	return w.ev.memory(n)
}

func (w *jsonWriter) value(v Value, depth int) error {
	if err := w.pay(); err != nil {
		return err
	}
	switch v.kind {
	case KindNull:
		w.out = append(w.out, "null"...)
	case KindBoolean:
		w.out = strconv.AppendBool(w.out, v.num != 0)
	case KindNumber:
		w.number(v.num)
	case KindString:
		return w.string(v.str)
	case KindArray:
		return w.array(v.arr.items, depth)
	default:
		return w.object(v.obj, depth)
	}
	return w.pay()
}

func (w *jsonWriter) array(items []Value, depth int) error {
	w.out = append(w.out, '[')
	for i, item := range items {
		w.next(i, depth+1)
		if err := w.value(item, depth+1); err != nil {
			return err
		}
	}
	w.end(']', len(items), depth)
	return w.pay()
}

func (w *jsonWriter) object(o *Object, depth int) error {
	w.out = append(w.out, '{')
	for i, key := range o.Keys() {
		w.next(i, depth+1)
		if err := w.string(key); err != nil {
			return err
		}
		w.out = append(w.out, ':')
		if w.indent {
			w.out = append(w.out, ' ')
		}
		v, err := o.at(i)
		if err != nil && !w.lenient {
			return err
		}
		if err := w.value(v, depth+1); err != nil {
			return err
		}
	}
	w.end('}', o.Len(), depth)
	return w.pay()
}

// next begins the item at position i of a list.
func (w *jsonWriter) next(i, depth int) {
	if i > 0 {
		w.out = append(w.out, ',')
	}
	w.line(depth)
}

// end closes a list of n items.
func (w *jsonWriter) end(c byte, n, depth int) {
	if n > 0 {
		w.line(depth)
	}
	w.out = append(w.out, c)
}

func (w *jsonWriter) line(depth int) {
	if !w.indent {
		return
	}
	w.out = append(w.out, '\n')
	for range depth {
		w.out = append(w.out, ' ', ' ')
	}
}

func (w *jsonWriter) number(f float64) {
	switch {
	case w.indent:
		w.out = append(w.out, formatNumber(f)...)
	case math.IsNaN(f) || math.IsInf(f, 0):
		w.out = strconv.AppendQuote(w.out, formatNumber(f))
	case f == 0:
		w.out = append(w.out, '0')
	case math.Abs(f) < 1e21 && math.Abs(f) >= 1e-6:
		w.out = strconv.AppendFloat(w.out, f, 'f', -1, 64)
	default:
		w.out = strconv.AppendFloat(w.out, f, 'e', -1, 64)
	}
}

// string writes s in quotes with the fewest escapes: quotes, backslashes and control characters.
func (w *jsonWriter) string(s string) error {
	const hex, block = "0123456789abcdef", 64 << 10
	w.out = append(w.out, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		w.out = append(w.out, s[start:i]...)
		start = i + 1
		if j := strings.IndexByte("\"\\\b\f\n\r\t", c); j >= 0 {
			w.out = append(w.out, '\\', `"\bfnrt`[j])
		} else {
			w.out = append(w.out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		if len(w.out)-w.paid > block { // escapes may make it six times as long
			if err := w.pay(); err != nil {
				return err
			}
		}
	}
	w.out = append(append(w.out, s[start:]...), '"')
	return w.pay()
}
