package llm

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// lazily compiles an expression when it is first needed: most commands of the program never are where these are.
func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// escapes are the terminal's: CSI, OSC, and the two-byte ones.
var escapes = lazily("\x1b(?:\\[[0-9;:<=>?]*[ -/]*[@-~]|\\][^\x07\x1b]*(?:\x07|\x1b\\\\)?|[@-_])")

// Strip drops what controls a display and what is not seen: terminal escapes, control characters but line feeds and
// tabs, direction marks, characters without width. Carriage returns become line feeds: what they overwrite is text too.
func Strip(s string) string {
	s = strings.ToValidUTF8(s, "\ufffd")
	if strings.ContainsRune(s, '\x1b') {
		s = escapes().ReplaceAllString(s, "")
	}
	s = strings.ReplaceAll(s, "\r\n", "\n")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r == '\r':
			return '\n'
		case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r), // format: bidi, zero width, tags
			r == '\u2028', r == '\u2029', r >= 0xfe00 && r <= 0xfe0f, r >= 0xe0100 && r <= 0xe01ef, r == 0x115f, r == 0x1160, r == 0x3164, r == 0x034f:
			return -1
		}
		return r
	}, s)
}

// hidden stands in place of a secret.
const hidden = "[redacted]"

// tokens are secrets that show by their form.
var tokens = lazily(strings.Join([]string{
	`-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\z)`,
	`\b(?:gh[pousr]_|github_pat_)[A-Za-z0-9_]{16,}`,
	`\bgl(?:pat|ptt|dt|rt|cbt|ft|soat)-[A-Za-z0-9_-]{16,}`,
	`\b(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{12,}`,
	`\bAIza[A-Za-z0-9_-]{30,}`,
	`\bya29\.[A-Za-z0-9_-]{20,}`,
	`\bxox[abeoprs]-[A-Za-z0-9-]{10,}`,
	`\b(?:sk|pk|rk|whsec)[-_][A-Za-z0-9_-]{16,}`,
	`\bnpm_[A-Za-z0-9]{20,}`,
	`\bpypi-[A-Za-z0-9_-]{20,}`,
	`\bdop_v1_[a-f0-9]{20,}`,
	`\bhf_[A-Za-z0-9]{20,}`,
	`\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}`,
	`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?`,
	`\bhooks\.slack\.com/services/[A-Za-z0-9/]+`,
}, "|"))

// named are values behind a name that says what they are. An expression of ours is not a secret.
var named = lazily(`(?i)((?:[a-z0-9_.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|client[_-]?key|auth)[a-z0-9_]*)["']?\s*(?:=|:|=>)\s*|--?(?:password|token|secret|api-key)[= ]|authorization:\s*(?:basic|bearer|token)\s+|\bbearer\s+)("[^"\n]*"|'[^'\n]*'|[^\s"',;&]+)`)

// userinfo is the password in an address.
var userinfo = lazily(`([a-zA-Z][a-zA-Z0-9+.-]*://[^\s/:@]*:)[^\s/@]+@`)

// words are what might be random: long runs of the characters of base64 and hex.
var words = lazily(`[A-Za-z0-9+_=-]{20,}`)

// Redactor replaces secrets: those that it knows, in the encodings in which they get printed, and those that look like
// secrets. It is safe for concurrent use. The zero value knows none and finds the rest.
type Redactor struct {
	known *strings.Replacer
}

// NewRedactor returns a Redactor that knows these values. Values of fewer than four bytes are ignored: they would hide
// half of every text and protect nothing.
func NewRedactor(values ...string) *Redactor {
	var all []string
	add := func(s string) {
		if s = strings.TrimSpace(Strip(s)); len(s) >= 4 {
			all = append(all, s)
		}
	}
	for _, v := range values {
		add(v)
		for line := range strings.Lines(v) {
			add(line)
		}
		if len(strings.TrimSpace(v)) < 4 {
			continue
		}
		quoted, _ := json.Marshal(v) // of a string: cannot fail
		add(strings.Trim(string(quoted), `"`))
		add(url.QueryEscape(v))
		add(url.PathEscape(v))
		add(hex.EncodeToString([]byte(v)))
		for shift := range min(3, len(v)) { // base64, by where in the encoded text it begins; the last characters depend on what follows
			for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				e := enc.EncodeToString([]byte(v[shift:]))
				if e = e[:len(e)-len(e)%4]; len(e) >= 8 {
					add(e)
				}
			}
		}
	}
	slices.SortFunc(all, func(a, b string) int { return len(b) - len(a) }) // the longest first
	var pairs []string
	for _, v := range slices.Compact(all) {
		pairs = append(pairs, v, hidden)
	}
	return &Redactor{known: strings.NewReplacer(pairs...)}
}

// Redact returns s without secrets.
func (r *Redactor) Redact(s string) string {
	if r != nil && r.known != nil {
		s = r.known.Replace(s)
	}
	s = tokens().ReplaceAllString(s, hidden)
	s = userinfo().ReplaceAllString(s, "${1}"+hidden+"@")
	s = named().ReplaceAllStringFunc(s, func(m string) string {
		at := named().FindStringSubmatchIndex(m)
		value := m[at[4]:]
		if v := strings.Trim(value, `"'`); strings.HasPrefix(v, "${{") || strings.HasPrefix(v, "$") || v == "" || v == hidden || harmless(v) {
			return m
		}
		return m[:at[4]] + hidden
	})
	return words().ReplaceAllStringFunc(s, func(w string) string {
		if random(w) {
			return hidden
		}
		return w
	})
}

// harmless are values that often follow such a name and tell nothing.
func harmless(v string) bool {
	switch strings.ToLower(v) {
	case "true", "false", "null", "none", "nil", "undefined", "inherit", "read", "write", "required", "***", "{", "[", "|", ">", "missing", "invalid", "expired", "not", "is":
		return true
	}
	return false
}

// random reports whether a long word looks generated rather than named: hex of 32 and more, or letters of both
// cases and digits that take turns.
func random(w string) bool {
	if strings.HasPrefix(w, "_Z") || strings.HasPrefix(w, "_R") {
		return false // a name that a compiler has mangled, which linkers print
	}
	var lower, upper, digit, other, turns int
	hexOnly, last := true, 0
	for _, c := range []byte(w) {
		class := 0
		switch {
		case c >= '0' && c <= '9':
			digit++
			class = 1
		case c >= 'a' && c <= 'z':
			lower++
			class = 2
		case c >= 'A' && c <= 'Z':
			upper++
			class = 3
		default:
			other++
		}
		hexOnly = hexOnly && (class == 1 || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F')
		if class != last && (class == 1 || last == 1) {
			turns++
		}
		last = class
	}
	if hexOnly {
		return len(w) >= 32 && digit > 0 && lower+upper > 0
	}
	if other > len(w)/4 {
		return false
	}
	return digit >= 2 && turns >= 4 && (upper > 0 && lower > 0 || len(w) >= 32 && turns >= 8)
}

// fence puts data between two marks that nobody who wrote the data could know. The data is stripped and redacted, and
// cut in its middle to limit bytes: a log's beginning and end tell most.
func fence(data string, r *Redactor, limit int) string {
	var raw [12]byte
	rand.Read(raw[:]) // never fails
	nonce := hex.EncodeToString(raw[:])
	data = strings.ReplaceAll(r.Redact(Strip(data)), nonce, "")
	return "<<<DATA " + nonce + "\n" + middleOut(data, limit) + "\nDATA " + nonce + ">>>"
}

// middleOut drops the middle of what is longer than limit bytes.
func middleOut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	head, tail := limit/2, len(s)-limit/2
	for head > 0 && !utf8.RuneStart(s[head]) {
		head--
	}
	for tail < len(s) && !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + "\n[… left out …]\n" + s[tail:]
}

// shortened is at most n bytes of a text, without secrets: they go before anything is cut off, or a part of one would be none that
// is known.
func (s *Service) shortened(text string, n int) string {
	return cut(s.c.Redact.Redact(Strip(text)), n)
}

// links are addresses, with what Markdown would make of them without a scheme.
var links = lazily(`(?i)\b(?:[a-z][a-z0-9+.-]{1,20}://|www\.|mailto:)\S+`)

// Say makes text of a model's fit to be shown: one line of at most limit runes, stripped and redacted again, without
// addresses, mentions, images or HTML. Who shows it still escapes it.
func (r *Redactor) Say(s string, limit int) string {
	s = strings.Join(strings.Fields(r.Redact(Strip(s))), " ")
	s = links().ReplaceAllString(s, "[address removed]")
	s = strings.NewReplacer("@", "＠", "![", "! [", "](", "] (", "<", "‹", ">", "›", "`", "'").Replace(s)
	if n := utf8.RuneCountInString(s); n > limit {
		s = string([]rune(s)[:limit-1]) + "…"
	}
	return s
}
