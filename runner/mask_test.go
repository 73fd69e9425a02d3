package runner

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"
)

func newTestMasker(t testing.TB, values ...string) *masker {
	t.Helper()
	m := newMasker(10_000, 4<<20)
	for _, v := range values {
		if err := m.add(v); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestMask(t *testing.T) {
	for _, c := range []struct {
		values   []string
		in, want string
	}{
		{nil, "nothing", "nothing"},
		{[]string{"secret"}, "a secret, secrets", "a ***, ***s"},
		{[]string{"secret"}, "SECRET", "SECRET"},
		{[]string{""}, "a", "a"},
		{[]string{" \n "}, "a b", "a b"},
		{[]string{"abc", "bcd"}, "xabcdx", "x***x"}, // they overlap
		{[]string{"abc", "def"}, "abcdef", "***"},   // they touch
		{[]string{"abc", "abcdef"}, "abcdef abcde", "*** ***de"},
		{[]string{"aab"}, "aaab", "a***"},
		{[]string{"one\ntwo\r\nthree"}, "one two three four", "*** *** *** four"},
		{[]string{" padded "}, "x padded y padded", "x***y ***"},
		{[]string{`a"b\c`}, `{"v":"a\"b\\c"}`, `{"v":"***"}`},
		{[]string{"<p&q>"}, "&lt;p&amp;q&gt; %3Cp%26q%3E", "*** ***"},
		{[]string{"p w"}, "p%20w p+w", "*** ***"},
		{[]string{"it's"}, "it''s", "***"},
		{[]string{"100%"}, "100% 100%25", "*** ***"},
		{[]string{`"quoted"`}, "quoted", "***"},
		{[]string{"x"}, "xyx", "***y***"},
		{[]string{"päß"}, "a päß", "a ***"},
	} {
		m := newTestMasker(t, c.values...)
		if got := m.mask(c.in); got != c.want {
			t.Errorf("%q in %q: %q, want %q", c.values, c.in, got, c.want)
		}
		if m.contains(c.in) != (c.in != c.want) {
			t.Errorf("%q in %q: contains = %v", c.values, c.in, m.contains(c.in))
		}
	}
}

func TestHides(t *testing.T) {
	const password = "hunter2hunter2hunter2"
	hides := Job{Secrets: map[string]string{"A": password, "USER": "acme", "KEY": "-----BEGIN\n}\nthe second line of a key", "EMPTY": ""}, Token: "ghs_0123456789abcdef"}.Hides()
	for name, want := range map[string]bool{
		"report": false, "report-" + password: true, "report-hunter2": false, "x" + base64.StdEncoding.EncodeToString([]byte(password)): true,
		"ghs_0123456789abcdef": true, "acme-build": false, "a}b": false, "on the second line of a key": true, "": false,
	} {
		if got := hides(name); got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
	if (Job{}).Hides()("report") {
		t.Error("a job without secrets hides a name")
	}
}

func TestMaskEncodings(t *testing.T) {
	const secret = "sw0rdfish&chips?"
	m := newTestMasker(t, secret)
	for pad := range 7 {
		for tail := range 7 {
			plain := strings.Repeat("q", pad) + secret + strings.Repeat("z", tail)
			for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding} {
				got := m.mask(enc.EncodeToString([]byte(plain)))
				// Of the first and the last group, what they share with their neighbours stays.
				if !strings.Contains(got, hidden) || len(got) > len(hidden)+(pad+tail+6)*4/3+4 {
					t.Errorf("base64 of %q: %q", plain, got)
				}
			}
		}
	}
	for _, form := range []string{url.QueryEscape(secret), url.PathEscape(secret), strings.ReplaceAll(secret, "&", "&amp;")} {
		if got := m.mask("<" + form + ">"); got != "<***>" {
			t.Errorf("%q: %q", form, got)
		}
	}
}

// TestMaskOfficial masks what each encoder of the official runner makes of a value, as its own tests have it.
func TestMaskOfficial(t *testing.T) {
	for _, c := range []struct{ encoder, value, in string }{
		{"base64", "pa$$w0rd", "cGEkJHcwcmQ"},
		{"base64, shifted by 1", "pa$$w0rd", "YSQkdzByZA"},
		{"base64, shifted by 2", "pa$$w0rd", "JCR3MHJk"},
		{"base64 of URLs", "???>>>~~~", "Pz8_Pj4-fn5-"},
		{"command line argument", `a"b"c`, `a\"b\"c`},
		{"expression string", "it's mine", "it''s mine"},
		{"JSON string", "a\t\"b\"\\c", `a\t\"b\"\\c`},
		{"URI data", "a b/c?d=é", "a%20b%2Fc%3Fd%3D%C3%A9"},
		{"XML data", `<a b="c">'&`, "&lt;a b=&quot;c&quot;&gt;&apos;&amp;"},
		{"trimmed quotes", `"longer than eight"`, "longer than eight"},
		{"PowerShell, before the ampersand", "secretpart1&secretpart2&secretpart3", "secretpart1&secretpart2&"},
		{"PowerShell, after the ampersand", "secretpart1&secretpart2&secretpart3", "secretpart3"},
		{"PowerShell, before a plus", "secretpart1&+secretpart2&secretpart3", "secretpart1&+"},
		{"PowerShell, after a plus", "secretpart1&+secretpart2&secretpart3", "ecretpart2&secretpart3"},
		{"shell, in single quotes", "it's mine", `it'\''s mine`},
	} {
		if got := newTestMasker(t, c.value).mask("<" + c.in + ">"); got != "<"+hidden+">" {
			t.Errorf("%s: %q shows as %q", c.encoder, c.in, got)
		}
	}
	for value, in := range map[string]string{"ab&": "ab", "abc&def": "def", "abc&+defg": "efg"} {
		if got := newTestMasker(t, value).mask(in); got != in {
			t.Errorf("%q hides %q, which is too short", value, in)
		}
	}
}

func TestMaskLimits(t *testing.T) {
	m := newMasker(2, 1000)
	for i, ok := range []bool{true, true, false} {
		if err := m.add(fmt.Sprintf("value-%d", i)); (err == nil) != ok {
			t.Errorf("value %d: %v", i, err)
		}
	}
	if err := newMasker(10, 100).add(strings.Repeat("long", 50)); err == nil {
		t.Error("200 bytes fitted in 100")
	}
	if s := m.String(); strings.Contains(s, "value-0") {
		t.Errorf("String gives a value away: %s", s)
	}
}

// TestMaskMany adds masks one by one, with text between them, as a hostile step could: it must not take forever.
func TestMaskMany(t *testing.T) {
	m := newMasker(10_000, 4<<20)
	for i := range 5_000 {
		if err := m.add(fmt.Sprintf("%032d", i)); err != nil {
			t.Fatal(err)
		}
		if got := m.mask(fmt.Sprintf("x%032dx", i)); got != "x***x" {
			t.Fatal(got)
		}
	}
	if len(m.autos) > 24 {
		t.Errorf("%d automata", len(m.autos))
	}
}

// stream masks a text that comes in chunks, as an output does with a line that is too long to keep.
func stream(m *masker, text string, chunk, keep int) string {
	var shown strings.Builder
	buf := ""
	for text != "" {
		n := min(chunk, len(text))
		buf, text = buf+text[:n], text[n:]
		if len(buf) >= keep+m.longest() {
			done, rest := m.cut(buf)
			shown.WriteString(done)
			buf = rest
		}
	}
	shown.WriteString(m.mask(buf))
	return shown.String()
}

func FuzzMask(f *testing.F) {
	f.Add("secret", "two\nlines", "a secret and two lines, secretsecret", uint8(3), uint8(1))
	f.Add("aa", "aaa", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", uint8(1), uint8(0))
	f.Add("abc", "bcd", "xabcdxabcbcd", uint8(2), uint8(4))
	f.Add("é", "日本", "caf\u00e9 日本 日", uint8(1), uint8(0))
	f.Fuzz(func(t *testing.T, one, two, text string, chunk, keep uint8) {
		if len(one) > 1000 || len(two) > 1000 || strings.Contains(one+two, "*") { // the replacement itself
			return
		}
		one, two, text = strings.ToValidUTF8(one, "?"), strings.ToValidUTF8(two, "?"), strings.ToValidUTF8(text, "?")
		m := newTestMasker(t, one, two)
		for _, got := range []string{m.mask(text), stream(m, text, int(chunk)+1, int(keep)+1)} {
			for _, secret := range []string{one, two} {
				for _, line := range strings.FieldsFunc(secret, func(r rune) bool { return r == '\n' || r == '\r' }) {
					if strings.TrimSpace(line) != "" && strings.Contains(got, line) {
						t.Fatalf("%q shows in %q", line, got)
					}
				}
			}
		}
	})
}

func BenchmarkMask(b *testing.B) {
	m := newMasker(1000, 1<<20)
	for i := range 20 {
		if err := m.add(fmt.Sprintf("ghs_%036d", i*7919)); err != nil {
			b.Fatal(err)
		}
	}
	line := strings.Repeat("ok  github.com/terraphim/tgr/runner 0.123s ", 3)
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		m.mask(line)
	}
}
