package github

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of a payload's JSON. GitHub's own payloads are about ten levels deep and hold a few thousand values.
const (
	maxDepth  = 256
	maxValues = 1 << 20
	maxString = 4 << 20 // bytes of one string, as it is written
)

// kind is what a JSON value is.
type kind byte

const (
	isString kind = iota + 1
	isNumber
	isBool
	isNull
	isObject
	isArray
)

// value is a JSON value that was asked for: the text of a scalar, or just the presence of something larger.
type value struct {
	kind kind
	text string // decoded string, number as written, "true" or "false"
}

// fields are the values found at the dotted paths that were asked for.
type fields map[string]value

// parseFields checks that body is one JSON object within the bounds and returns its values at the wanted paths
// ("pull_request.head.sha"); nothing else is kept. It is stricter than encoding/json, because what one reader
// of a payload sees another must see too: names are compared exactly, and a name that occurs twice in an object,
// invalid UTF-8, half a surrogate pair and NUL are errors.
func parseFields(body []byte, want []string) (fields, error) {
	p := &scanner{in: body, want: make(map[string]bool), got: make(fields)}
	for _, path := range want {
		for i, c := range path {
			if c == '.' {
				p.want[path[:i]] = true
			}
		}
		p.want[path] = true
	}
	if !utf8.Valid(body) {
		return nil, p.fail("invalid UTF-8")
	}
	p.space()
	if p.pos >= len(p.in) || p.in[p.pos] != '{' {
		return nil, p.fail("expected an object")
	}
	if err := p.value("", true, 0); err != nil {
		return nil, err
	}
	p.space()
	if p.pos != len(p.in) {
		return nil, p.fail("data after the object")
	}
	return p.got, nil
}

// scanner walks over JSON once, recursing at most maxDepth deep.
type scanner struct {
	in     []byte
	pos    int
	values int
	want   map[string]bool
	got    fields
}

func (p *scanner) fail(format string, args ...any) error {
	return fmt.Errorf("byte %d: %s", p.pos, fmt.Sprintf(format, args...))
}

func (p *scanner) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// value reads one value. wanted says whether path, or something below it, was asked for.
func (p *scanner) value(path string, wanted bool, depth int) error {
	if p.values++; p.values > maxValues {
		return p.fail("more than %d values", maxValues)
	}
	if depth > maxDepth {
		return p.fail("nested deeper than %d levels", maxDepth)
	}
	if p.pos >= len(p.in) {
		return p.fail("unexpected end")
	}
	keep := func(k kind, text string) {
		if wanted && depth > 0 {
			p.got[path] = value{k, text}
		}
	}
	switch c := p.in[p.pos]; {
	case c == '{':
		keep(isObject, "")
		return p.object(path, wanted, depth)
	case c == '[':
		keep(isArray, "")
		return p.array(depth)
	case c == '"':
		s, err := p.str(wanted)
		if err != nil {
			return err
		}
		keep(isString, s)
		return nil
	case c == '-' || c >= '0' && c <= '9':
		n, err := p.number()
		if err != nil {
			return err
		}
		keep(isNumber, n)
		return nil
	}
	for _, word := range []struct {
		text string
		kind kind
	}{{"true", isBool}, {"false", isBool}, {"null", isNull}} {
		if bytes.HasPrefix(p.in[p.pos:], []byte(word.text)) {
			p.pos += len(word.text)
			keep(word.kind, word.text)
			return nil
		}
	}
	return p.fail("expected a value, found %q", p.in[p.pos])
}

func (p *scanner) object(path string, wanted bool, depth int) error {
	p.pos++ // {
	var few [16]string
	names, many := few[:0], map[string]struct{}(nil)
	for first := true; ; first = false {
		p.space()
		if p.pos < len(p.in) && p.in[p.pos] == '}' && first {
			p.pos++
			return nil
		}
		if p.pos >= len(p.in) || p.in[p.pos] != '"' {
			return p.fail("expected a name")
		}
		name, err := p.str(true)
		if err != nil {
			return err
		}
		if many == nil && len(names) == cap(few[:]) {
			many = make(map[string]struct{}, 2*len(names))
			for _, n := range names {
				many[n] = struct{}{}
			}
		}
		if !addName(&names, many, name) {
			return p.fail("%q occurs twice in an object", clip(name, 60))
		}
		if err := p.expect(':'); err != nil {
			return err
		}
		sub, subWanted := "", false
		if wanted && !strings.Contains(name, ".") { // a name with a dot is no path
			if sub = name; path != "" {
				sub = path + "." + name
			}
			subWanted = p.want[sub]
		}
		if err := p.value(sub, subWanted, depth+1); err != nil {
			return err
		}
		if end, err := p.next('}'); end || err != nil {
			return err
		}
	}
}

// addName notes a name of an object, in a short list while there are few; false: it was there.
func addName(names *[]string, many map[string]struct{}, name string) bool {
	if many != nil {
		_, dup := many[name]
		many[name] = struct{}{}
		return !dup
	}
	for _, n := range *names {
		if n == name {
			return false
		}
	}
	*names = append(*names, name)
	return true
}

func (p *scanner) array(depth int) error {
	p.pos++ // [
	p.space()
	if p.pos < len(p.in) && p.in[p.pos] == ']' {
		p.pos++
		return nil
	}
	for {
		p.space()
		if err := p.value("", false, depth+1); err != nil {
			return err
		}
		if end, err := p.next(']'); end || err != nil {
			return err
		}
	}
}

// expect reads c, with space around it.
func (p *scanner) expect(c byte) error {
	p.space()
	if p.pos >= len(p.in) || p.in[p.pos] != c {
		return p.fail("expected %q", c)
	}
	p.pos++
	p.space()
	return nil
}

// next reads a comma, or what closes the object or array.
func (p *scanner) next(closing byte) (end bool, err error) {
	p.space()
	if p.pos >= len(p.in) {
		return false, p.fail("unexpected end")
	}
	switch p.in[p.pos] {
	case ',':
		p.pos++
		return false, nil
	case closing:
		p.pos++
		return true, nil
	}
	return false, p.fail("expected ',' or %q", closing)
}

// str reads a string, and decodes it if decode is set.
func (p *scanner) str(decode bool) (string, error) {
	p.pos++ // "
	start, plain := p.pos, true
	for {
		if p.pos >= len(p.in) {
			return "", p.fail("unexpected end of a string")
		}
		if p.pos-start > maxString {
			return "", p.fail("a string of more than %d bytes", maxString)
		}
		switch c := p.in[p.pos]; {
		case c == '"':
			raw := p.in[start:p.pos]
			p.pos++
			if plain && decode {
				return string(raw), nil
			}
			if !decode {
				return "", nil
			}
			return unescape(raw), nil
		case c < ' ':
			return "", p.fail("a control character in a string")
		case c == '\\':
			plain = false
			if err := p.escape(); err != nil {
				return "", err
			}
		default:
			p.pos++
		}
	}
}

// escape checks one escape sequence and steps over it.
func (p *scanner) escape() error {
	rest := p.in[p.pos:]
	if len(rest) < 2 {
		return p.fail("unexpected end of a string")
	}
	switch rest[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		p.pos += 2
		return nil
	case 'u':
	default:
		return p.fail("unknown escape sequence \\%c", rest[1])
	}
	r, ok := hex4(rest)
	if !ok {
		return p.fail("\\u needs four hexadecimal digits")
	}
	switch {
	case r == 0:
		return p.fail("NUL in a string")
	case utf16.IsSurrogate(r):
		if low, ok := hex4(rest[6:]); !ok || utf16.DecodeRune(r, low) == utf8.RuneError {
			return p.fail("half a surrogate pair")
		}
		p.pos += 12
	default:
		p.pos += 6
	}
	return nil
}

// hex4 reads \uXXXX from the beginning of b.
func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

// unescape decodes a string whose escape sequences were checked.
func unescape(raw []byte) string {
	var b strings.Builder
	b.Grow(len(raw))
	for i := 0; i < len(raw); {
		if raw[i] != '\\' {
			b.WriteByte(raw[i])
			i++
			continue
		}
		if raw[i+1] == 'u' {
			r, _ := hex4(raw[i:])
			i += 6
			if utf16.IsSurrogate(r) {
				low, _ := hex4(raw[i:])
				r = utf16.DecodeRune(r, low)
				i += 6
			}
			b.WriteRune(r)
			continue
		}
		switch c := raw[i+1]; c {
		case 'b':
			b.WriteByte('\b')
		case 'f':
			b.WriteByte('\f')
		case 'n':
			b.WriteByte('\n')
		case 'r':
			b.WriteByte('\r')
		case 't':
			b.WriteByte('\t')
		default: // a quote, a slash or a backslash
			b.WriteByte(c)
		}
		i += 2
	}
	return b.String()
}

// number reads a number as JSON defines it: NaN, 01 and 1. are none.
func (p *scanner) number() (string, error) {
	start := p.pos
	digits := func() int {
		n := p.pos
		for p.pos < len(p.in) && p.in[p.pos] >= '0' && p.in[p.pos] <= '9' {
			p.pos++
		}
		return p.pos - n
	}
	at := func(set string) bool { return p.pos < len(p.in) && strings.IndexByte(set, p.in[p.pos]) >= 0 }
	if at("-") {
		p.pos++
	}
	zero := at("0")
	if n := digits(); n == 0 || zero && n > 1 {
		return "", p.fail("a malformed number")
	}
	if at(".") {
		p.pos++
		if digits() == 0 {
			return "", p.fail("a malformed number")
		}
	}
	if at("eE") {
		p.pos++
		if at("+-") {
			p.pos++
		}
		if digits() == 0 {
			return "", p.fail("a malformed number")
		}
	}
	if p.pos-start > 64 {
		return "", p.fail("a number of more than 64 characters")
	}
	return string(p.in[start:p.pos]), nil
}

// clip shortens s to at most n bytes for a message, at the boundary of a character.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}
