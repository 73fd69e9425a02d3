package web

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

func TestANSI(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		spans    []Span
		terminal string
	}{
		{"plain", "hello", []Span{{"hello", ""}}, "hello"},
		{"empty", "", nil, ""},
		{"tab and unicode", "a\tü✓", []Span{{"a\tü✓", ""}}, "a\tü✓"},
		{"colour", "\x1b[31mred\x1b[0m not", []Span{{"red", "f1"}, {" not", ""}}, "\x1b[31mred\x1b[0m not\x1b[0m"},
		{"all at once", "\x1b[1;3;4;92;41mx", []Span{{"x", "b i u f10 g1"}}, "\x1b[1;3;4;92;41mx\x1b[0m"},
		{"off again", "\x1b[1;3;4;31;42mx\x1b[22;23;24;39;49my", []Span{{"x", "b i u f1 g2"}, {"y", ""}}, "\x1b[1;3;4;31;42mx\x1b[22;23;24;39;49my\x1b[0m"},
		{"bright background", "\x1b[107mx\x1b[mx", []Span{{"x", "g15"}, {"x", ""}}, "\x1b[107mx\x1b[mx\x1b[0m"},
		{"256 and true colours", "\x1b[38;5;31;1mx\x1b[48;2;31;32;33mx\x1b[38:2::1:2:3mx", []Span{{"x", "b"}, {"x", "b"}, {"x", "b"}}, "\x1b[38;5;31;1mx\x1b[48;2;31;32;33mx\x1b[38:2::1:2:3mx\x1b[0m"},
		{"link", "\x1b]8;;javascript:alert(1)\x1b\\text\x1b]8;;\x1b\\", []Span{{"text", ""}}, "text"},
		{"clipboard", "a\x1b]52;c;ZXZpbA==\ab", []Span{{"ab", ""}}, "ab"},
		{"title, C1", "a\u009d0;title\u009cb", []Span{{"ab", ""}}, "ab"},
		{"unterminated", "a\x1b]0;title", []Span{{"a", ""}}, "a"},
		{"device control", "a\x1bPq#0\x1b\\b\u0090x\ac", []Span{{"abc", ""}}, "abc"},
		{"cursor", "a\x1b[2J\x1b[1;1H\x1b[?25lb", []Span{{"ab", ""}}, "ab"},
		{"C1 CSI", "a\u009b31mb\u009b2Jc", []Span{{"a", ""}, {"bc", "f1"}}, "a\x1b[31mbc\x1b[0m"},
		{"private SGR", "a\x1b[>4;2mb\x1b[?4mc", []Span{{"abc", ""}}, "abc"},
		{"cut sequence", "a\x1b[31", []Span{{"a", ""}}, "a"},
		{"cut escape", "a\x1b", []Span{{"a", ""}}, "a"},
		{"short escapes", "a\x1bcb\x1b(Bc\x1b7d", []Span{{"abcd", ""}}, "abcd"},
		{"sequence in a sequence", "a\x1b[3\x1b[31mb", []Span{{"a", ""}, {"b", "f1"}}, "a\x1b[31mb\x1b[0m"},
		{"controls", "a\x00\x07\x08\x0b\x7f\u0085b", []Span{{"ab", ""}}, "ab"},
		{"progress", "10%\r50%\r100%\r", []Span{{"100%", ""}}, "100%"},
		{"direction", "a\u202eb\u2066c\u200fd", []Span{{"abcd", ""}}, "abcd"},
		{"not UTF-8", "a\xffb\x9b31m", []Span{{"a\ufffdb\ufffd31m", ""}}, "a\ufffdb\ufffd31m"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if diff := cmp.Diff(tc.spans, Spans(tc.in)); diff != "" {
				t.Errorf("Spans: -want +got\n%s", diff)
			}
			if got := Terminal(tc.in); got != tc.terminal {
				t.Errorf("Terminal: %q, want %q", got, tc.terminal)
			}
			plain := ""
			for _, s := range tc.spans {
				plain += s.Text
			}
			if got := Plain(tc.in); got != plain {
				t.Errorf("Plain: %q, want %q", got, plain)
			}
		})
	}
}

func TestMarks(t *testing.T) {
	for in, want := range map[string][]Span{
		"##[error]it \x1b[32mfails\x1b[0m": {{"Error: ", "b f1"}, {"it ", "b f1"}, {"fails", "f2"}},
		"##[group]Run make":                {{"Run make", "b"}},
		"##[endgroup]":                     nil,
		"##[unheard]of":                    {{"##[unheard]of", ""}},
		"error]x":                          {{"error]x", ""}},
		"##[error":                         {{"##[error", ""}},
		"":                                 nil,
	} {
		if diff := cmp.Diff(want, logSpans(in)); diff != "" {
			t.Errorf("%q: -want +got\n%s", in, diff)
		}
	}
}

func FuzzSpans(f *testing.F) {
	f.Add("\x1b[31;1mred\x1b[0m\x1b]8;;x\x1b\\y\u009b4mz\u202e\xff\r")
	f.Add(hostile)
	f.Fuzz(func(t *testing.T, s string) {
		plain := Plain(s)
		for _, r := range plain {
			if unicode.IsControl(r) && r != '\t' || direction(r) {
				t.Fatalf("Plain(%q) = %q", s, plain)
			}
		}
		var b strings.Builder
		for _, span := range Spans(s) {
			b.WriteString(span.Text)
			if strings.Trim(span.Class, "biufg0123456789 ") != "" || span.Text == "" {
				t.Fatalf("Spans(%q) has %+v", s, span)
			}
		}
		if b.String() != plain || !utf8.ValidString(plain) {
			t.Fatalf("Spans(%q) = %q, Plain = %q", s, b.String(), plain)
		}
		if again := Plain(Terminal(s)); again != plain {
			t.Fatalf("Terminal(%q) shows %q, Plain = %q", s, again, plain)
		}
	})
}
