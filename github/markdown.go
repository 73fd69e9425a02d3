package github

import (
	"html"
	"regexp"
	"strings"
	"unicode"

	"github.com/terraphim/tgr"
)

var (
	escapeSequence = regexp.MustCompile("\x1b(\\[[0-9;:?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)?|.)?")
	autoLink       = regexp.MustCompile(`(?i)(https?:|ftp:|www\.|gh-)`)
)

// plain makes one line of text of something hostile: no control characters, no escape sequences, nothing that
// changes the direction of writing, and no invisible characters to hide behind.
func plain(s string) string {
	s = escapeSequence.ReplaceAllString(s, "")
	s = strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
	return strings.TrimSpace(s)
}

// escape makes text that Markdown shows as it is: no formatting, no HTML, no links, no mentions of people or issues.
func escape(s string) string {
	s = plain(s)
	var b strings.Builder
	for _, r := range autoLink.ReplaceAllString(s, "$1\u200b") {
		switch r {
		case '@', '#': // an entity is a mention all the same; a character after it ends that
			b.WriteString(string(r) + "\u200b")
		case '&', '<', '>', '"', '\'':
			b.WriteString(html.EscapeString(string(r)))
		case '\\', '`', '*', '_', '{', '}', '[', ']', '(', ')', '+', '-', '.', '!', '|', '~', '$', ':', '=', '^':
			if r == '.' || r == '-' || r == ':' || r == '+' || r == '(' || r == ')' || r == '=' || r == '!' {
				// Harmless within a line that begins with something else, and unreadable when escaped.
				b.WriteRune(r)
				continue
			}
			b.WriteString("&#" + decimal(r) + ";")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func decimal(r rune) string {
	const digits = "0123456789"
	if r < 10 {
		return digits[r : r+1]
	}
	return decimal(r/10) + digits[r%10:r%10+1]
}

// runes cuts s to at most n characters.
func runes(s string, n int) string {
	if len(s) <= n {
		return s
	}
	r := []rune(s)
	if len(r) <= n {
		return s
	}
	return string(r[:n-1]) + "…"
}

// Bounds of what is shown of a failed job's log.
const (
	maxLines     = 20
	maxLineRunes = 300
)

// lines is the beginning of what a failed job said, as preformatted HTML: in it nothing is Markdown or a mention.
func (b *builder) lines(j tgr.Job) string {
	lines := b.o.Lines(j)
	if len(lines) == 0 {
		return ""
	}
	var s strings.Builder
	s.WriteString("<pre>\n")
	for i, l := range lines {
		if i == maxLines {
			s.WriteString("…\n")
			break
		}
		// An empty line would end the HTML block in some places of a comment.
		l = html.EscapeString(runes(plain(l), maxLineRunes))
		if l == "" {
			l = " "
		}
		s.WriteString(l + "\n")
	}
	s.WriteString("</pre>\n")
	return s.String()
}
