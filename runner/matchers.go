package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/dlclark/regexp2"

	"github.com/terraphim/tgr"
)

// Bounds of problem matchers.
const (
	maxMatchers    = 50
	maxMatcherFile = 256 << 10
	maxPatterns    = 20
	matcherTimeout = 100 * time.Millisecond // for one line
	matcherBudget  = time.Second            // for all lines of the job that took long; then the matcher is dropped
	matcherSlow    = time.Millisecond       // what is long
)

// matcher is a problem matcher: it makes annotations of a compiler's output.
//
// https://github.com/actions/toolkit/blob/main/docs/problem-matchers.md
type matcher struct {
	Owner    string           `json:"owner"`
	Severity string           `json:"severity"`
	FromPath string           `json:"fromPath"`
	Patterns []matcherPattern `json:"pattern"`

	states map[*record][]*found // what matched so far in a step's output, by pattern; nil: nothing
	spent  time.Duration
}

// matcherPattern is one line of what a matcher looks for. The numbers are groups of the expression.
type matcherPattern struct {
	Regexp   string `json:"regexp"`
	File     *int   `json:"file"`
	FromPath *int   `json:"fromPath"`
	Line     *int   `json:"line"`
	Column   *int   `json:"column"`
	Severity *int   `json:"severity"`
	Code     *int   `json:"code"`
	Message  *int   `json:"message"`
	Loop     bool   `json:"loop"`

	re *regexp2.Regexp
}

// found is what the patterns of a matcher have captured; nil: not captured.
type found struct{ file, fromPath, line, column, severity, code, message *string }

// colours are the escape sequences that terminals colour text with.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m?")

// addMatcher reads a file of matchers from the machine.
func (u *unit) addMatcher(file string) error {
	r := u.run
	if strings.TrimSpace(file) == "" {
		return errors.New("a file path must be specified")
	}
	list, err := u.readMatchers(file)
	if err != nil {
		return err
	}
	for _, m := range list {
		r.dropMatcher(m.Owner)
		if len(r.matchers) >= maxMatchers {
			return fmt.Errorf("more than %d problem matchers", maxMatchers)
		}
		r.matchers = append([]*matcher{m}, r.matchers...) // the newest is asked first
		r.debug(u.rec, "Added matchers: '"+m.Owner+"'. Problem matchers scan action output for known warning or error strings and report these inline.")
	}
	return nil
}

// removeMatcher takes a matcher away, by its owner or by the file that it came from.
func (u *unit) removeMatcher(c command) error {
	r := u.run
	owner := c.props["owner"]
	switch {
	case owner != "" && c.data != "":
		return errors.New("either specify an owner or a file, not both")
	case owner == "" && c.data == "":
		return errors.New("either an owner or a file must be specified")
	case owner != "":
		r.dropMatcher(owner)
		return nil
	}
	list, err := u.readMatchers(c.data)
	if err != nil {
		return err
	}
	for _, m := range list {
		r.dropMatcher(m.Owner)
	}
	return nil
}

// readMatchers reads a file of the machine; its path may be relative to the workspace.
func (u *unit) readMatchers(file string) ([]*matcher, error) {
	r := u.run
	if file = u.at().outside(path.Clean(file)); !path.IsAbs(file) {
		file = path.Join(r.config.Dirs.Workspace, file)
	}
	src, ok, err := r.fetchFile(file, maxMatcherFile)
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("there is no file '%s'", excerpt(file))
	}
	list, err := parseMatchers([]byte(src))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", excerpt(file), err)
	}
	return list, nil
}

func (r *run) dropMatcher(owner string) {
	kept := r.matchers[:0]
	for _, m := range r.matchers {
		if !strings.EqualFold(m.Owner, owner) {
			kept = append(kept, m)
		}
	}
	r.matchers = kept
}

// parseMatchers reads and checks a file of matchers.
func parseMatchers(src []byte) ([]*matcher, error) {
	var file struct {
		Matchers []*matcher `json:"problemMatcher"`
	}
	if err := json.Unmarshal([]byte(strings.TrimPrefix(string(src), "\ufeff")), &file); err != nil {
		return nil, err
	}
	if len(file.Matchers) > maxMatchers {
		return nil, fmt.Errorf("more than %d problem matchers", maxMatchers)
	}
	owners := map[string]bool{}
	for _, m := range file.Matchers {
		if m == nil || strings.TrimSpace(m.Owner) == "" {
			return nil, errors.New("a problem matcher needs an owner")
		}
		owner := strings.ToLower(m.Owner)
		if owners[owner] {
			return nil, fmt.Errorf("two problem matchers have the owner '%s'", excerpt(m.Owner))
		}
		owners[owner] = true
		if err := m.check(); err != nil {
			return nil, fmt.Errorf("problem matcher '%s': %w", excerpt(m.Owner), err)
		}
	}
	return file.Matchers, nil
}

// check holds a matcher to GitHub's rules and compiles it.
func (m *matcher) check() error {
	n := len(m.Patterns)
	if n == 0 || n > maxPatterns {
		return fmt.Errorf("it needs between 1 and %d patterns", maxPatterns)
	}
	switch strings.ToLower(m.Severity) {
	case "", "error", "warning", "notice":
	default:
		return fmt.Errorf("severity '%s' is not error, warning or notice", excerpt(m.Severity))
	}
	seen := map[string]bool{}
	for i := range m.Patterns {
		p := &m.Patterns[i]
		if p.Loop && (i != n-1 || n < 2 || p.Message == nil) {
			return errors.New("only the last of several patterns may loop, and it must set message")
		}
		re, err := regexp2.Compile(p.Regexp, regexp2.ECMAScript)
		if err != nil {
			return fmt.Errorf("pattern %d: %w", i+1, err)
		}
		re.MatchTimeout = matcherTimeout
		p.re = re
		groups := len(re.GetGroupNumbers())
		for name, g := range p.groups() {
			if g == nil {
				continue
			}
			if *g < 0 || *g >= groups {
				return fmt.Errorf("pattern %d: %s: there is no group %d", i+1, name, *g)
			}
			if seen[name] {
				return fmt.Errorf("%s is set by more than one pattern", name)
			}
			seen[name] = true
		}
	}
	if !seen["message"] {
		return errors.New("no pattern sets message")
	}
	m.states = map[*record][]*found{}
	return nil
}

func (p *matcherPattern) groups() map[string]*int {
	return map[string]*int{"file": p.File, "fromPath": p.FromPath, "line": p.Line, "column": p.Column,
		"severity": p.Severity, "code": p.Code, "message": p.Message}
}

// match offers a line of output to the matchers; it reports whether one of them made an annotation of it, which
// shows the line, and whether the line meant anything to one of them.
func (r *run) match(u *unit, line string) (shown, touched bool) {
	if len(r.matchers) == 0 {
		return false, false
	}
	text := line
	if strings.Contains(text, "\x1b") {
		text = colours.ReplaceAllString(text, "")
	}
	if len(text) > 8<<10 { // no compiler says so much in one line
		return false, false
	}
	for i, m := range r.matchers {
		start := time.Now()
		states := m.of(u.rec)
		touched = touched || running(states)
		f, err := m.offer(states, text)
		touched = touched || f != nil || running(states)
		if took := time.Since(start); took > matcherSlow {
			m.spent += took
		}
		if m.spent > matcherBudget {
			r.matchers = append(r.matchers[:i:i], r.matchers[i+1:]...)
			r.taped.spoil("a problem matcher was too slow")
			r.warn(u.rec, "Removed issue matcher '"+m.Owner+"': it takes too long.")
			return false, touched
		}
		if err != nil || f == nil {
			continue
		}
		for _, other := range r.matchers {
			if other != m {
				clear(other.of(u.rec))
			}
		}
		return r.annotateMatch(u, m, f, text), true
	}
	return false, touched
}

// running reports whether some of a matcher's patterns have matched.
func running(states []*found) bool {
	return slices.ContainsFunc(states, func(f *found) bool { return f != nil })
}

// of is what has matched so far in the output of a step.
func (m *matcher) of(rec *record) []*found {
	if m.states[rec] == nil {
		m.states[rec] = make([]*found, len(m.Patterns))
	}
	return m.states[rec]
}

// offer matches one line; what it returns is complete. A line may be what several patterns look for: the second of one
// message and the first of the next.
func (m *matcher) offer(states []*found, line string) (*found, error) {
	last := len(m.Patterns) - 1
	for i := last; i >= 0; i-- {
		p := &m.Patterns[i]
		var before *found
		if i > 0 {
			if before = states[i-1]; before == nil {
				continue
			}
		}
		match, err := p.re.FindStringMatch(line)
		switch {
		case err != nil:
			return nil, err
		case match == nil && i == last && i > 0:
			states[i-1] = nil
		case match == nil:
			states[i] = nil
		case i == last:
			clear(states)
			if p.Loop {
				states[i-1] = before
			}
			return p.capture(match, before), nil
		default:
			states[i] = p.capture(match, before)
		}
	}
	return nil, nil
}

// capture adds what a pattern captured to what those before it have. What was captured first stays.
func (p *matcherPattern) capture(match *regexp2.Match, before *found) *found {
	f := found{}
	if before != nil {
		f = *before
	}
	take := func(field **string, group *int) {
		if *field != nil || group == nil {
			return
		}
		if g := match.GroupByNumber(*group); g != nil && len(g.Captures) > 0 {
			s := g.String()
			*field = &s
		}
	}
	take(&f.file, p.File)
	take(&f.fromPath, p.FromPath)
	take(&f.line, p.Line)
	take(&f.column, p.Column)
	take(&f.severity, p.Severity)
	take(&f.code, p.Code)
	take(&f.message, p.Message)
	return &f
}

// annotateMatch makes an annotation of what a matcher found. One without a message, or of an unknown severity,
// is none.
func (r *run) annotateMatch(u *unit, m *matcher, f *found, line string) bool {
	get := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	level := strings.ToLower(get(f.severity))
	if level == "" {
		level = strings.ToLower(m.Severity)
	}
	switch level {
	case "":
		level = "error"
	case "info", "information":
		level = "notice"
	}
	if get(f.message) == "" || level != "error" && level != "warning" && level != "notice" {
		return false
	}
	file := get(f.file)
	if file != "" && !path.IsAbs(file) {
		from := get(f.fromPath)
		if from == "" {
			from = m.FromPath
		}
		if from != "" {
			file = path.Join(path.Dir(from), file)
		}
	}
	a := tgr.Annotation{Level: level, Message: get(f.message), File: inWorkspace(file, u.at().inside(r.config.Dirs.Workspace)),
		Line: place(get(f.line)), Column: place(get(f.column))}
	if code := get(f.code); code != "" {
		a.Title = code
	}
	r.annotateAs(u.rec, a, line)
	return true
}
