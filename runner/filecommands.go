package runner

import (
	"strings"
	"unicode/utf8"
)

// pair is one entry of a command file, in the file's order.
type pair struct{ Name, Value string }

// parsePairs reads the grammar of GITHUB_ENV, GITHUB_OUTPUT and GITHUB_STATE:
//
//	NAME=VALUE
//	NAME<<DELIMITER
//	any lines, kept as they are
//	DELIMITER
//
// Empty lines are skipped; whichever of = and << comes first decides. What was read before an error is returned
// with it. The words of the errors are GitHub's.
func parsePairs(src string) ([]pair, error) {
	rest := strings.TrimPrefix(src, "\ufeff")
	var pairs []pair
	for rest != "" {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		if line == "" {
			continue
		}
		eq, here := strings.Index(line, "="), strings.Index(line, "<<")
		switch {
		case here >= 0 && (eq < 0 || here < eq):
			name, delimiter := line[:here], line[here+2:]
			if name == "" || delimiter == "" {
				return pairs, userError("Invalid format '%s'. Name must not be empty and delimiter must not be empty", excerpt(line))
			}
			value, after, err := heredoc(rest, delimiter)
			if err != nil {
				return pairs, err
			}
			pairs, rest = append(pairs, pair{name, value}), after
		case eq > 0:
			pairs = append(pairs, pair{line[:eq], line[eq+1:]})
		case eq == 0:
			return pairs, userError("Invalid format '%s'. Name must not be empty", excerpt(line))
		default:
			return pairs, userError("Invalid format '%s'", excerpt(line))
		}
	}
	return pairs, nil
}

// heredoc returns the text up to the line that is the delimiter, and what comes after that line.
// The last line's end is not part of the value.
func heredoc(s, delimiter string) (value, after string, err error) {
	for i, end := 0, 0; i < len(s); {
		line, _, ended := strings.Cut(s[i:], "\n")
		if line == delimiter {
			if ended {
				after = s[i+len(line)+1:]
			}
			return s[:end], after, nil
		}
		if !ended {
			return "", "", userError("Invalid value. EOF marker missing new line.")
		}
		end = i + len(line)
		i = end + 1
	}
	return "", "", userError("Invalid value. Matching delimiter not found '%s'", excerpt(delimiter))
}

// parseLines reads GITHUB_PATH: one entry per line, blank lines skipped.
func parseLines(src string) []string {
	var lines []string
	for line := range strings.Lines(strings.TrimPrefix(src, "\ufeff")) {
		if line = strings.TrimRight(line, "\r\n"); strings.TrimSpace(line) != "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// excerpt shortens what a job wrote, for an error message.
func excerpt(s string) string {
	const limit = 200
	if len(s) <= limit {
		return s
	}
	end := limit
	for end > 0 && !utf8.RuneStart(s[end]) {
		end--
	}
	return s[:end] + "…"
}
