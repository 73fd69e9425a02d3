package runner

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/terraphim/tgr"
)

// hidden is what a masked value is shown as.
const hidden = "***"

// masker replaces secrets in text. It is owned by the goroutine that runs the job.
//
// The values are kept in a few automata of growing size, so that a job which adds many masks pays for each
// only logarithmically often.
type masker struct {
	maxValues, maxBytes int
	mute                bool // a value could not be masked: nothing may be shown any more

	seen   map[string]struct{} // patterns
	values int
	bytes  int // of all patterns
	autos  []*automaton
	fresh  []string // patterns that are in no automaton yet
	filter filter
	marks  []span // scratch
}

// span is a half-open range of bytes.
type span struct{ from, to int }

// newMasker returns a masker that refuses more than maxValues values or maxBytes bytes of patterns.
func newMasker(maxValues, maxBytes int) *masker {
	return &masker{maxValues: maxValues, maxBytes: maxBytes, seen: map[string]struct{}{}}
}

// add masks a value from now on: the whole of it, each of its lines, and what these look like in the encodings
// that programs print them in. An empty value is ignored.
func (m *masker) add(value string) error {
	value = strings.ToValidUTF8(value, "\ufffd") // as log lines are, before they are masked
	if strings.TrimSpace(value) == "" {
		return nil
	}
	if _, ok := m.seen[value]; ok {
		return nil
	}
	if m.values++; m.values > m.maxValues {
		return tgr.Errorf("job.mask", tgr.Limit, "more than %d values to mask", m.maxValues)
	}
	for line := range strings.FieldsFuncSeq(value, func(r rune) bool { return r == '\n' || r == '\r' }) {
		for _, text := range []string{line, strings.TrimSpace(line)} {
			if err := m.addForms(text); err != nil {
				return err
			}
		}
	}
	return m.addForms(value)
}

// addForms masks one text and its encodings.
func (m *masker) addForms(text string) error {
	if _, ok := m.seen[text]; ok || strings.TrimSpace(text) == "" {
		return nil
	}
	if err := m.addPattern(text); err != nil {
		return err
	}
	for _, form := range encodings(text) {
		// What is shorter than the value and very short would hide half of the log and protect nothing.
		if len(form) < 4 && len(form) < len(text) || form == "" {
			continue
		}
		if err := m.addPattern(form); err != nil {
			return err
		}
	}
	return nil
}

func (m *masker) addPattern(p string) error {
	if _, ok := m.seen[p]; ok {
		return nil
	}
	if m.bytes += len(p); m.bytes > m.maxBytes {
		return tgr.Errorf("job.mask", tgr.Limit, "the values to mask, in all their encodings, are more than %d bytes", m.maxBytes)
	}
	m.seen[p] = struct{}{}
	m.fresh = append(m.fresh, p)
	return nil
}

// encodings returns how a value may look in JSON, XML, a URL, a quoted argument, in what PowerShell makes of it, and in
// base64: all that the official runner looks for, and some more.
//
// https://github.com/actions/runner/blob/main/src/Sdk/DTLogging/Logging/ValueEncoders.cs
func encodings(v string) []string {
	forms := append(base64Forms(v), ampersandForms(v)...)
	return append(forms,
		jsonForm(v),
		url.PathEscape(v),
		url.QueryEscape(v),
		strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&quot;", "'", "&apos;").Replace(v),
		strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(v),
		strings.ReplaceAll(v, "'", "''"),   // in an expression, in PowerShell
		strings.ReplaceAll(v, "'", `'\''`), // in a shell's single quotes
		strings.ReplaceAll(v, `"`, `\"`),   // in double quotes
		strings.Trim(v, `"`),               //
		strings.ReplaceAll(v, "%", "%25"),  // as the data of a workflow command
		strings.ReplaceAll(url.QueryEscape(v), "+", "%20"),
	)
}

// base64Forms are the three forms that a value has within base64, by where in the encoded text it begins. The last
// character of an incomplete group depends on what follows the value: with it is how the value looks at the end.
func base64Forms(v string) (forms []string) {
	for shift := range min(3, len(v)) {
		tail := v[shift:]
		for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			form := enc.EncodeToString([]byte(tail))
			if len(form) >= 4 {
				forms = append(forms, form)
			}
			if within := form[:len(form)-1]; len(tail)%3 != 0 && len(within) >= 4 {
				forms = append(forms, within)
			}
		}
	}
	return forms
}

// ampersandForms are the parts that PowerShell prints of a value that it was given as a command: it breaks, or colours
// a character, at an ampersand. Short parts would hide too much.
func ampersandForms(v string) (forms []string) {
	const shortest = 6
	end, next := strings.LastIndexByte(v, '&')+1, 0
	if plus := strings.Index(v, "&+"); plus >= 0 {
		end = plus + 2
		_, next = utf8.DecodeRuneInString(v[end:]) // the coloured one
	}
	if end == 0 {
		return nil
	}
	for _, part := range []string{v[:end], v[end+next:]} {
		if len(part) >= shortest {
			forms = append(forms, part)
		}
	}
	return forms
}

// jsonForm is v inside a JSON string, with only what must be escaped.
func jsonForm(v string) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return v
	}
	return strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(b.String(), "\n"), `"`), `"`)
}

// mask returns s with every masked value replaced. s must be whole: a value that goes on after its end is not seen.
func (m *masker) mask(s string) string {
	spans := m.find(s)
	if len(spans) == 0 {
		return s
	}
	return replaceSpans(s, spans)
}

// contains reports whether s holds a masked value.
func (m *masker) contains(s string) bool { return len(m.find(s)) > 0 }

// shortestName is how much of a name has to be a secret for the name to hold it. People keep names of users and hosts as secrets,
// and name things after them; a key or a token is longer.
const shortestName = 16

// Hides returns what reports whether a name holds a secret of the job, or its token, in any form that the log would mask:
// for what is shown where nobody masks. It is safe for concurrent use.
func (j Job) Hides() func(name string) bool {
	masks := sync.OnceValue(func() *masker {
		limits := Limits{}.orDefaults()
		m := newMasker(limits.Masks, limits.MaskBytes)
		for _, value := range append(slices.Collect(maps.Values(j.Secrets)), j.Token) {
			m.mute = m.add(value) != nil || m.mute
		}
		m.build()
		return m
	})
	var mu sync.Mutex
	return func(name string) bool {
		mu.Lock()
		defer mu.Unlock()
		m := masks()
		return m.mute || slices.ContainsFunc(m.find(name), func(s span) bool { return s.to-s.from >= shortestName })
	}
}

// cut splits a buffer that is only the beginning of a line: done is masked and can be shown, rest has to be looked
// at again together with what follows. Unless a match is in the way, rest is shorter than the longest pattern.
func (m *masker) cut(s string) (done, rest string) {
	spans := m.find(s)
	at := max(0, len(s)-max(m.longest()-1, 0))
	for i, sp := range spans {
		if sp.from < at && at < sp.to {
			if at = sp.from; at == 0 { // the buffer begins with it: all of it can go
				at = sp.to
			}
		}
		if sp.from >= at {
			spans = spans[:i]
			break
		}
	}
	for at > 0 && at < len(s) && !utf8.RuneStart(s[at]) {
		at--
	}
	return replaceSpans(s[:at], spans), s[at:]
}

// longest is the length of the longest pattern.
func (m *masker) longest() int {
	m.build()
	n := 0
	for _, a := range m.autos {
		n = max(n, a.longest)
	}
	return n
}

// find returns where masked values are in s, merged where they touch.
func (m *masker) find(s string) []span {
	m.build()
	skip := m.filter.skip(s)
	if skip == len(s) {
		return nil
	}
	marks := m.marks[:0]
	for _, a := range m.autos {
		marks = a.find(s[skip:], marks)
	}
	for i := range marks {
		marks[i].from += skip
		marks[i].to += skip
	}
	m.marks = marks
	if len(m.autos) > 1 {
		slices.SortFunc(marks, func(a, b span) int { return a.from - b.from })
	}
	return mergeSpans(marks)
}

// mergeSpans joins the spans that overlap or touch, in place. They come in the order of their beginnings.
func mergeSpans(in []span) []span {
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 && s.from <= out[n-1].to {
			out[n-1].to = max(out[n-1].to, s.to)
			continue
		}
		out = append(out, s)
	}
	return out
}

func replaceSpans(s string, spans []span) string {
	if len(spans) == 0 {
		return s
	}
	var b strings.Builder
	at := 0
	for _, sp := range spans {
		b.WriteString(s[at:sp.from])
		b.WriteString(hidden)
		at = sp.to
	}
	b.WriteString(s[at:])
	return b.String()
}

// build puts the patterns that were added since the last time into an automaton, together with those of the automata
// that are not larger.
func (m *masker) build() {
	if len(m.fresh) == 0 {
		return
	}
	m.filter.add(m.fresh, m.seen)
	patterns := m.fresh
	for n := len(m.autos); n > 0 && m.autos[n-1].size() <= 2*sizeOf(patterns); n = len(m.autos) {
		patterns = append(patterns, m.autos[n-1].patterns...)
		m.autos = m.autos[:n-1]
	}
	m.autos = append(m.autos, newAutomaton(patterns))
	m.fresh = nil
}

// filter finds quickly how much of a text holds no pattern: it looks at pairs of bytes, and from most of them it sees that
// no pattern has begun in the bytes before (Wu and Manber, 1994). Its zero value is that of no patterns.
type filter struct {
	width int             // length of the shortest pattern, at most maxWidth; 0: there are none
	step  *[1 << 16]uint8 // by pair: how far it is to the next pair to look at; 0: a pattern may have begun
}

const maxWidth = 64

// add takes further patterns; all are those that there are, these included.
func (f *filter) add(fresh []string, all map[string]struct{}) {
	width := f.width
	for _, p := range fresh {
		if width == 0 || len(p) < width {
			width = min(len(p), maxWidth)
		}
	}
	if width == f.width {
		for _, p := range fresh {
			f.enter(p)
		}
		return
	}
	f.width = width
	if width < 3 {
		f.step = nil // nothing could be skipped
		return
	}
	if f.step == nil {
		f.step = new([1 << 16]uint8)
	}
	for i := range f.step {
		f.step[i] = uint8(width - 1)
	}
	for p := range all {
		f.enter(p)
	}
}

func (f *filter) enter(p string) {
	for i := 0; f.step != nil && i+2 <= f.width; i++ {
		pair := &f.step[int(p[i])<<8|int(p[i+1])]
		*pair = min(*pair, uint8(f.width-2-i))
	}
}

// skip returns how many bytes at the beginning of s no pattern begins in; len(s): s holds none.
func (f *filter) skip(s string) int {
	if f.width == 0 {
		return len(s)
	}
	if f.step == nil {
		return 0
	}
	for i := f.width - 2; i+2 <= len(s); {
		n := f.step[int(s[i])<<8|int(s[i+1])]
		if n == 0 {
			return i - (f.width - 2)
		}
		i += int(n)
	}
	return len(s)
}

func sizeOf(patterns []string) (n int) {
	for _, p := range patterns {
		n += len(p)
	}
	return n
}

// automaton finds all of its patterns in one pass (Aho and Corasick, 1975).
type automaton struct {
	patterns []string
	longest  int
	bytes    int
	nodes    []node
	start    [256]int32 // the root's edges
}

// node is a state: what was read is a beginning of some pattern.
type node struct {
	edges []edge // sorted
	fail  int32  // the state of the longest proper end of it that is a beginning, too
	match int32  // length of the longest pattern that ends here; 0: none
}

type edge struct {
	b  byte
	to int32
}

func newAutomaton(patterns []string) *automaton {
	a := &automaton{patterns: patterns, nodes: make([]node, 1), bytes: sizeOf(patterns)}
	for _, p := range patterns {
		a.insert(p)
	}
	queue := make([]int32, 0, len(a.nodes))
	for _, e := range a.nodes[0].edges {
		a.start[e.b] = e.to
		queue = append(queue, e.to)
	}
	for i := 0; i < len(queue); i++ {
		for _, e := range a.nodes[queue[i]].edges {
			fail := a.next(a.nodes[queue[i]].fail, e.b)
			a.nodes[e.to].fail = fail
			a.nodes[e.to].match = max(a.nodes[e.to].match, a.nodes[fail].match)
			queue = append(queue, e.to)
		}
	}
	return a
}

func (a *automaton) size() int { return a.bytes }

func (a *automaton) insert(p string) {
	at := int32(0)
	for i := range len(p) {
		n := &a.nodes[at]
		k, ok := slices.BinarySearchFunc(n.edges, p[i], func(e edge, b byte) int { return int(e.b) - int(b) })
		if !ok {
			n.edges = slices.Insert(n.edges, k, edge{p[i], int32(len(a.nodes))})
			at = int32(len(a.nodes))
			a.nodes = append(a.nodes, node{})
			continue
		}
		at = n.edges[k].to
	}
	a.nodes[at].match = int32(len(p))
	a.longest = max(a.longest, len(p))
}

// next is the state after reading b in state at.
func (a *automaton) next(at int32, b byte) int32 {
	for at != 0 {
		for _, e := range a.nodes[at].edges {
			if e.b == b {
				return e.to
			}
		}
		at = a.nodes[at].fail
	}
	return a.start[b]
}

// find appends where patterns are in s, in the order of their beginnings and with no two of them touching.
func (a *automaton) find(s string, marks []span) []span {
	base, at := len(marks), int32(0)
	for i := range len(s) {
		if at = a.next(at, s[i]); at == 0 {
			continue
		}
		n := a.nodes[at].match
		if n == 0 {
			continue
		}
		m := span{i + 1 - int(n), i + 1}
		// A longer pattern that ends later may begin earlier: it swallows what it covers.
		for len(marks) > base && m.from <= marks[len(marks)-1].to {
			m.from = min(m.from, marks[len(marks)-1].from)
			marks = marks[:len(marks)-1]
		}
		marks = append(marks, m)
	}
	return marks
}

// String keeps the values out of anything that prints a masker.
func (m *masker) String() string { return fmt.Sprintf("masker(%d values)", m.values) }
