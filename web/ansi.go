package web

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Span is a piece of a line with one look.
type Span struct {
	Text  string `json:"text"`
	Class string `json:"class,omitempty"` // CSS classes: b i u, f0…f15 for the colour, g0…g15 for the background
}

// Spans turns a line of a log into what a page may show: colours and weights as classes, and nothing else of
// what terminals obey: no links, titles, clipboards, cursors. What a carriage return would have overwritten is
// gone. Each line begins without a look.
func Spans(line string) []Span {
	var spans []Span
	var look look
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			spans = append(spans, Span{Text: text.String(), Class: look.class()})
			text.Reset()
		}
	}
	scan(folded(line), func(r rune) { text.WriteRune(r) }, func(params string) {
		flush()
		look = look.apply(params)
	})
	flush()
	return spans
}

// logSpans is Spans for a line that may begin with one of the runner's marks, which becomes a look. The mark is
// text like any other, which a step may print too: nothing but the look depends on it.
func logSpans(line string) []Span {
	mark, text, ok := strings.Cut(strings.TrimPrefix(line, "##["), "]")
	if !ok || len(text)+len(mark)+len("##[]") != len(line) {
		return Spans(line)
	}
	classes := map[string]string{"error": "b f1", "warning": "b f3", "notice": "b f4", "debug": "f8", "command": "f4", "section": "b f2", "group": "b", "endgroup": ""}
	class, ok := classes[mark]
	if !ok {
		return Spans(line)
	}
	spans := Spans(text)
	if word := map[string]string{"error": "Error: ", "warning": "Warning: ", "notice": "Notice: "}[mark]; word != "" {
		spans = append([]Span{{Text: word, Class: class}}, spans...) // colour is never the only sign
	}
	for i := range spans {
		if spans[i].Class == "" {
			spans[i].Class = class
		}
	}
	return spans
}

// Plain is a line of a log, a name or a message without anything that a terminal would obey.
func Plain(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	scan(folded(s), func(r rune) { b.WriteRune(r) }, func(string) {})
	return b.String()
}

// Terminal is a line of a log for a terminal: with its colours, which end with the line, and nothing else that
// the terminal would obey.
func Terminal(line string) string {
	var b strings.Builder
	b.Grow(len(line))
	coloured := false
	scan(folded(line), func(r rune) { b.WriteRune(r) }, func(params string) {
		coloured = true
		b.WriteString("\x1b[" + params + "m")
	})
	if coloured {
		b.WriteString("\x1b[0m")
	}
	return b.String()
}

// folded returns what of a line is left on the screen after its carriage returns: the last piece with text.
func folded(line string) string {
	line = strings.TrimRight(line, "\r\n")
	return line[strings.LastIndexByte(line, '\r')+1:]
}

// scan calls text for every rune that shows, and sgr with the parameters of every colour sequence. It drops all
// other control sequences (ECMA-48), control characters, and the invisible characters that change the
// direction of text.
func scan(s string, text func(rune), sgr func(params string)) {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		rest := s[n:]
		switch {
		case r == '\x1b' && rest != "" && rest[0] == '[', r == '\u009b':
			if r == '\x1b' {
				rest = rest[1:]
			}
			s = csi(rest, sgr)
			continue
		case r == '\x1b' && rest != "" && strings.IndexByte("]PX^_", rest[0]) >= 0:
			s = controlString(rest[1:])
			continue
		case r == '\u009d', r == '\u0090', r == '\u0098', r == '\u009e', r == '\u009f':
			s = controlString(rest)
			continue
		case r == '\x1b':
			s = escape(rest)
			continue
		case r == '\t', !unicode.IsControl(r) && !direction(r):
			text(r) // utf8.RuneError for a byte that is no UTF-8
		}
		s = rest
	}
}

// csi skips what follows a control sequence introducer, and returns the rest.
func csi(s string, sgr func(string)) string {
	i := 0
	for i < len(s) && s[i] >= 0x20 && s[i] <= 0x3f {
		i++
	}
	if i == len(s) || s[i] < 0x40 || s[i] > 0x7e {
		return s[i:] // not a whole sequence: its parameters are gone, the text stays
	}
	params := s[:i]
	if s[i] == 'm' && len(params) <= 64 && strings.Trim(params, "0123456789;:") == "" {
		sgr(params)
	}
	return s[i+1:]
}

// controlString skips a string for the terminal (a link, a title, the clipboard): up to its terminator, or to
// the end of the line.
func controlString(s string) string {
	for i, r := range s {
		switch {
		case r == '\a':
			return s[i+1:]
		case r == '\u009c':
			return s[i+2:]
		case r == '\x1b' && strings.HasPrefix(s[i:], "\x1b\\"):
			return s[i+2:]
		}
	}
	return ""
}

// escape skips a short escape sequence: intermediate bytes and a final one.
func escape(s string) string {
	i := 0
	for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
		i++
	}
	if i < len(s) && s[i] >= 0x30 && s[i] <= 0x7e {
		i++
	}
	return s[i:]
}

// direction reports whether r shows nothing and reorders what stands around it.
func direction(r rune) bool {
	return r == '\u061c' || r == '\u200e' || r == '\u200f' || r >= '\u202a' && r <= '\u202e' || r >= '\u2066' && r <= '\u2069'
}

// look is how text looks. Colours are 1 to 16; 0 is the default one.
type look struct {
	bold, italic, underline bool
	fore, back              int
}

// apply changes a look by the parameters of an SGR sequence. The 256 and the 16 million colours are skipped
// with their arguments: a page has its 16.
func (l look) apply(params string) look {
	fields := strings.FieldsFunc(params, func(r rune) bool { return r == ':' })
	if len(fields) > 1 {
		return l // the colon form names only colours that a page does not have
	}
	codes := strings.Split(params, ";")
	for i := 0; i < len(codes); i++ {
		n, _ := strconv.Atoi(codes[i]) // an empty code is 0
		switch {
		case n == 0:
			l = look{}
		case n == 1:
			l.bold = true
		case n == 3:
			l.italic = true
		case n == 4:
			l.underline = true
		case n == 22:
			l.bold = false
		case n == 23:
			l.italic = false
		case n == 24:
			l.underline = false
		case n >= 30 && n <= 37:
			l.fore = n - 29
		case n >= 90 && n <= 97:
			l.fore = n - 81
		case n == 39:
			l.fore = 0
		case n >= 40 && n <= 47:
			l.back = n - 39
		case n >= 100 && n <= 107:
			l.back = n - 91
		case n == 49:
			l.back = 0
		case n == 38, n == 48:
			i += arguments(codes[i+1:])
		}
	}
	return l
}

// arguments is how many codes belong to a 38 or 48 before them.
func arguments(codes []string) int {
	switch {
	case len(codes) > 0 && codes[0] == "5":
		return 2
	case len(codes) > 0 && codes[0] == "2":
		return 4
	}
	return 0
}

func (l look) class() string {
	var c []string
	if l.bold {
		c = append(c, "b")
	}
	if l.italic {
		c = append(c, "i")
	}
	if l.underline {
		c = append(c, "u")
	}
	if l.fore > 0 {
		c = append(c, "f"+strconv.Itoa(l.fore-1))
	}
	if l.back > 0 {
		c = append(c, "g"+strconv.Itoa(l.back-1))
	}
	return strings.Join(c, " ")
}
