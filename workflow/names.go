package workflow

import (
	"slices"
	"strconv"
	"strings"
)

// maxID is the length that an id must stay below.
const maxID = 100

// ids hands out ids within one scope: the jobs of a workflow, the steps of a job. They differ without regard to case.
// The value is the last number that was given to an invented id of that name.
type ids map[string]int

// inBackground is the number of a given id whose step runs in the background.
const inBackground = -1

// given are the ids that a file gives, in no order.
func (s ids) given() []string {
	out := make([]string, 0, len(s))
	for id := range s {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// claim takes an id that a file gives. What is wrong with it is the result, or "".
func (s ids) claim(id string) string {
	if !validID(id) {
		return "the identifier '" + id + "' is invalid: ids may only contain alphanumeric characters, '_' and '-', must start with a letter or '_' and must be shorter than 100 characters"
	}
	if strings.HasPrefix(id, "__") {
		return "the identifier '" + id + "' is invalid: ids that start with '__' are reserved"
	}
	key := strings.ToLower(id)
	if _, taken := s[key]; taken {
		return "the identifier '" + id + "' may not be used more than once within the same scope"
	}
	s[key] = 1
	return ""
}

// invent makes an id from a text that is not one: __actions_checkout, and __actions_checkout_2 if that is taken.
func (s ids) invent(text string) string {
	var b strings.Builder
	for _, c := range text {
		if isIDChar(c) {
			b.WriteRune(c)
		} else {
			b.WriteByte('_')
		}
	}
	base := b.String()
	first := strings.ToLower(base[:min(len(base), maxID)])
	for n := s[first] + 1; ; n++ {
		suffix := ""
		if n > 1 {
			suffix = "_" + strconv.Itoa(n)
		}
		id := base[:min(len(base), maxID-len(suffix))] + suffix
		key := strings.ToLower(id)
		if _, taken := s[key]; !taken {
			s[key] = max(s[key], 1)
			s[first] = n
			return id
		}
	}
}

func validID(id string) bool {
	if id == "" || len(id) >= maxID || id[0] == '-' || (id[0] >= '0' && id[0] <= '9') {
		return false
	}
	return strings.IndexFunc(id, func(c rune) bool { return !isIDChar(c) }) < 0
}

func isIDChar(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// stepIDBase is what the id of a step without one is made from.
func stepIDBase(s *Step) string {
	switch {
	case len(s.Wait) > 0:
		return "__wait"
	case s.WaitAll:
		return "__wait-all"
	case s.Cancel != "":
		return "__cancel"
	case len(s.Parallel) > 0:
		return "__parallel"
	case s.Uses == "":
		return "__run"
	}
	if image, ok := strings.CutPrefix(s.Uses, "docker://"); ok {
		return "__" + image
	}
	if isLocal(s.Uses) {
		return "__self"
	}
	name, _, _ := strings.Cut(s.Uses, "@")
	parts := strings.FieldsFunc(name, isSlash)
	if len(parts) < 2 {
		return "__run"
	}
	return "__" + parts[0] + "_" + parts[1]
}

func isSlash(c rune) bool { return c == '/' || c == '\\' }

// isLocal reports whether uses names a folder or file of the repository: ./path in the checked-out files, $/path at
// the workflow's own commit.
func isLocal(uses string) bool {
	return strings.HasPrefix(uses, "./") || strings.HasPrefix(uses, `.\`) || strings.HasPrefix(uses, "$/")
}
