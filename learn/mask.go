package learn

import (
	"strings"
	"unicode/utf8"
)

// Bounds of one line of a log.
const (
	maxLine   = 1024 // bytes that are looked at
	maxTokens = 48
)

// mask splits a line into words in which what differs from run to run is replaced: numbers, versions, addresses and
// durations by <n>, hashes and other random words by <id>, the folders of paths by <dir>. The line is hostile: mask takes
// any bytes, returns at most maxTokens valid words, and takes time linear in maxLine.
func mask(line string) []string {
	if len(line) > maxLine {
		line = line[:maxLine]
	}
	line = visible(line)
	var out []string
	for field := range strings.FieldsSeq(line) {
		if len(out) == maxTokens {
			break
		}
		if w := maskWord(field); len(out) > 0 || !isClock(w) {
			out = append(out, w)
		}
	}
	return out
}

// visible drops terminal escapes, control characters and what is not UTF-8.
func visible(s string) string {
	clean := utf8.ValidString(s)
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] >= ' ' && s[i] != 0x7f || s[i] == '\t'
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] == 0x1b {
			i += escape(s[i:])
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1, r < ' ' && r != '\t', r >= 0x7f && r < 0xa0:
			b.WriteByte(' ')
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// escape is the length of the terminal escape that s begins with.
func escape(s string) int {
	if len(s) < 2 {
		return 1
	}
	if s[1] != '[' {
		return 2
	}
	for i := 2; i < len(s); i++ {
		if s[i] >= 0x40 && s[i] <= 0x7e {
			return i + 1
		}
	}
	return len(s)
}

// isClock reports whether a masked word is a time of day or a date: lines begin with them, and they say nothing.
func isClock(w string) bool {
	w = strings.Trim(w, "[]()")
	return strings.HasPrefix(w, "<n>") && (strings.Contains(w, ":<n>") || strings.Contains(w, "-<n>")) && !strings.ContainsAny(w[3:], "abcdefghijklmopqrsuvwxy/")
}

func maskWord(w string) string {
	if i := strings.LastIndexByte(w, '/'); i > 0 && !strings.Contains(w, "://") {
		dir := strings.LastIndexAny(w[:i], "'\"`(=[<,")
		w = w[:dir+1] + "<dir>/" + w[i+1:]
		head, tail := w[:dir+1], w[dir+7:]
		return maskRuns(head) + "<dir>/" + maskRuns(tail)
	}
	return maskRuns(w)
}

// maskRuns masks the runs of letters and digits of a word.
func maskRuns(w string) string {
	if strings.IndexFunc(w, func(r rune) bool { return r >= '0' && r <= '9' }) < 0 && len(w) < 20 {
		return w
	}
	var b strings.Builder
	for i := 0; i < len(w); {
		if !isWordByte(w[i]) {
			b.WriteByte(w[i])
			i++
			continue
		}
		if isUUID(w[i:]) {
			b.WriteString("<id>")
			i += 36
			continue
		}
		n := i
		for n < len(w) && (isWordByte(w[n]) || (w[n] == '.' || w[n] == '-') && n > i && isDigit(w[n-1]) && n+1 < len(w) && isDigit(w[n+1])) {
			n++
		}
		b.WriteString(maskRun(w[i:n]))
		i = n
	}
	return b.String()
}

// maskRun masks one run: a random one as a whole, otherwise its numbers.
func maskRun(s string) string {
	digits, letters, hex := 0, 0, true
	for i := range len(s) {
		switch c := s[i]; {
		case isDigit(c):
			digits++
		case c == '.' || c == '-':
			hex = false
		default:
			letters++
			hex = hex && (c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F')
		}
	}
	switch {
	case digits == 0:
		return s
	case hex && letters > 0 && len(s) >= 7, digits >= 3 && letters >= 3 && digits+letters >= 16:
		return "<id>"
	}
	if strings.HasPrefix(s, "0x") {
		return "<n>"
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if !isDigit(s[i]) {
			b.WriteByte(s[i])
			i++
			continue
		}
		for i < len(s) && (isDigit(s[i]) || s[i] == '.' || s[i] == '-') {
			i++
		}
		b.WriteString("<n>")
	}
	return b.String()
}

// isUUID reports whether s begins with a UUID.
func isUUID(s string) bool {
	if len(s) < 36 {
		return false
	}
	for i := range 36 {
		c := s[i]
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && !isDigit(c) && (c|0x20 < 'a' || c|0x20 > 'f') {
			return false
		}
	}
	return true
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isWordByte(c byte) bool {
	return isDigit(c) || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
