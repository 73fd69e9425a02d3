package github

import (
	"html"
	"strconv"
	"strings"
	"unicode"

	"github.com/terraphim/tgr"
)

var (
	escapeSequence = lazily("\x1b(\\[[0-9;:?]*[ -/]*[@-~]|\\][^\x07\x1b]*(\x07|\x1b\\\\)?|.)?")
	autoLink       = lazily(`(?i)(https?:|ftp:|www\.|gh-)`)
)

// plain makes one line of text of something hostile: no control characters, no escape sequences, nothing that
// changes the direction of writing, and no invisible characters to hide behind.
func plain(s string) string { return strings.TrimSpace(visible(s)) }

// maxText is how much of a text is looked at, in bytes: nothing longer is shown anywhere.
const maxText = 16 << 10

func visible(s string) string {
	s = escapeSequence().ReplaceAllString(clip(s, maxText), "")
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r':
			return ' '
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar:
			return -1
		}
		return r
	}, s)
}

// escape makes text that Markdown shows as it is: no formatting, no HTML, no links, no mentions of people or issues.
func escape(s string) string {
	s = plain(s)
	var b strings.Builder
	for _, r := range autoLink().ReplaceAllString(s, "$1\u200b") {
		switch r {
		case '@', '#': // an entity is a mention all the same; a character after it ends that
			b.WriteString(string(r) + "\u200b")
		case '&', '<', '>', '"', '\'':
			b.WriteString(html.EscapeString(string(r)))
		case '\\', '`', '*', '_', '{', '}', '[', ']', '|', '~', '$', '^':
			b.WriteString("&#" + strconv.Itoa(int(r)) + ";")
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
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
		l = html.EscapeString(runes(strings.TrimRight(visible(l), " "), maxLineRunes))
		if l == "" {
			l = " "
		}
		s.WriteString(l + "\n")
	}
	s.WriteString("</pre>\n")
	return s.String()
}
