package runner

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/terraphim/tgr/guest"
	"github.com/terraphim/tgr/workflow"
)

// Bounds of hashFiles.
const (
	maxHashList    = 64 << 20 // bytes of paths
	maxHashPattern = 64 << 10
	hashTimeout    = 2 * time.Minute
)

// hashFiles is the function hashFiles of expressions: SHA-256 over the SHA-256 of each file of the workspace that
// the patterns match, in the order in which @actions/glob finds them; "" if there is none.
//
// find lists the workspace and sha256sum reads the files, in the machine, without a shell; the patterns are matched
// here. A job that replaces these programs spoils only its own hash.
func (r *run) hashFiles(patterns []string) (string, error) {
	follow := false
	if len(patterns) > 0 && strings.HasPrefix(patterns[0], "--") {
		if follow = strings.EqualFold(patterns[0], "--follow-symbolic-links"); !follow {
			return "", userError("hashFiles: invalid option '%s'; the option is --follow-symbolic-links", excerpt(patterns[0]))
		}
		patterns = patterns[1:]
	}
	g, err := parseGlobs(r.onMachine(patterns), r.config.Dirs.Workspace, r.config.Dirs.Home)
	if err != nil {
		return "", err
	}
	if len(g) == 0 {
		return "", nil
	}
	list, err := r.tool(nil, g.find(follow)...)
	if err != nil {
		return "", err
	}
	files := g.choose(strings.Split(string(list), "\x00"), r.config.Dirs.Workspace)
	if len(files) == 0 {
		return "", nil
	}
	sums, err := r.tool([]byte(strings.Join(files, "\x00")+"\x00"), "xargs", "-0", "-r", "sha256sum", "-b", "-z", "--")
	if err != nil {
		return "", err
	}
	total, n := sha256.New(), 0
	for _, line := range bytes.Split(sums, []byte{0}) {
		if len(line) < 66 {
			continue
		}
		sum, err := hex.DecodeString(string(line[:64]))
		if err != nil {
			return "", userError("hashFiles('%s'): sha256sum said what is no hash", excerpt(strings.Join(patterns, "', '")))
		}
		total.Write(sum)
		n++
	}
	if n == 0 { // links to folders, or to nothing
		return "", nil
	}
	return hex.EncodeToString(total.Sum(nil)), nil
}

// tool runs a program of the machine for the runner's own purposes and returns its output. Its exit status says
// nothing: find has one for folders that are not there, sha256sum for links that lead nowhere.
func (r *run) tool(stdin []byte, argv ...string) ([]byte, error) {
	limit, free := r.clock.limit(r.clock.hard, hashTimeout.Minutes())
	defer free()
	ctx, done := r.clock.cancellable(limit, r.clock.cancelled())
	defer done()
	env, err := r.processEnv(&unit{run: r, sc: r.top, src: &workflow.Step{}}, onMachine{r}, true, nil)
	if err != nil {
		return nil, err
	}
	out := &bounded{left: maxHashList}
	c := guest.Cmd{Args: argv, Dir: r.config.Dirs.Workspace, Env: env, User: r.config.User, Stderr: &bounded{left: 4 << 10}}
	if stdin != nil {
		c.Stdin = bytes.NewReader(stdin)
	}
	exit, err := r.config.Machine.Exec(ctx, c, out)
	switch {
	case limit.Err() != nil && r.clock.hard.Err() == nil:
		return nil, userError("hashFiles: it took more than %s", hashTimeout)
	case ctx.Err() != nil:
		return nil, interrupted(ctx)
	case err != nil:
		return nil, r.classify(ctx, "hashing files", err)
	case !exit.Started:
		return nil, userError("hashFiles: %s", excerpt(exit.Message))
	case out.over:
		return nil, userError("hashFiles: the workspace has too many files")
	}
	return out.b.Bytes(), nil
}

// bounded keeps the first bytes that are written to it.
type bounded struct {
	b    bytes.Buffer
	left int
	over bool
}

// Write takes what there is room for, and never fails.
func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.b.Write(p[:n])
	b.left -= n
	b.over = b.over || n < len(p)
	return len(p), nil
}

// comparePaths puts files in the order of a depth-first walk through sorted folders.
func comparePaths(a, b string) int {
	return slices.CompareFunc(strings.Split(a, "/"), strings.Split(b, "/"), cmp.Compare)
}

// glob is one pattern of hashFiles.
type glob struct {
	negate bool
	root   string // the folder above everything that it can match
	re     *regexp.Regexp
}

type globs []glob

// parseGlobs reads patterns as @actions/glob does: one per line, # for comments, ! to exclude, relative to the
// workspace, ~ for the home directory. A pattern that matches a folder matches all that is below it.
func parseGlobs(patterns []string, workspace, home string) (globs, error) {
	var list globs
	positive := false
	for _, p := range patterns {
		for line := range strings.Lines(p) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' {
				continue
			}
			if len(line) > maxHashPattern {
				return nil, userError("hashFiles: a pattern of %d bytes", len(line))
			}
			g, err := parseGlob(line, workspace, home)
			if err != nil {
				return nil, err
			}
			positive = positive || !g.negate
			list = append(list, g)
		}
	}
	if !positive {
		return nil, nil
	}
	return list, nil
}

func parseGlob(line, workspace, home string) (glob, error) {
	g := glob{}
	text := line
	for strings.HasPrefix(text, "!") {
		g.negate, text = !g.negate, strings.TrimSpace(text[1:])
	}
	if text == "" {
		return g, userError("hashFiles: the pattern '%s' is empty", excerpt(line))
	}
	for i, s := range cleanSegments(text) {
		literal, _ := literalSegment(s)
		if literal == ".." || literal == "." && (i > 0 || text[0] == '/') {
			return g, userError("hashFiles: invalid pattern '%s': relative pathing '.' and '..' is not allowed", excerpt(line))
		}
	}
	switch {
	case text == "~" || strings.HasPrefix(text, "~/"):
		text = escapeGlob(home) + text[1:]
	case text == "." || strings.HasPrefix(text, "./"):
		text = escapeGlob(workspace) + text[1:]
	case text[0] != '/':
		text = escapeGlob(workspace) + "/" + text
	}
	segments := cleanSegments(text)
	g.root = literalRoot(segments)
	re, err := regexp.Compile(globRegexp(segments, strings.HasSuffix(text, "/")))
	if err != nil {
		return g, userError("hashFiles: pattern '%s': %v", excerpt(line), err)
	}
	g.re = re
	return g, nil
}

func cleanSegments(p string) []string {
	return slices.DeleteFunc(strings.Split(p, "/"), func(s string) bool { return s == "" })
}

// escapeGlob makes a pattern that matches a path alone.
func escapeGlob(p string) string {
	return strings.NewReplacer(`\`, `\\`, "[", "[[]", "?", "[?]", "*", "[*]").Replace(p)
}

// literalRoot is the folder of a pattern's leading segments that hold no wildcard.
func literalRoot(segments []string) string {
	var literals []string
	for _, s := range segments {
		literal, ok := literalSegment(s)
		if !ok || literal == "" {
			break
		}
		literals = append(literals, literal)
	}
	return "/" + strings.Join(literals, "/")
}

// literalSegment is the name that a segment without wildcards matches. A set of one character is no wildcard.
func literalSegment(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == '*' || c == '?':
			return "", false
		case c == '[':
			set, n := literalSet(s[i:])
			switch {
			case utf8.RuneCountInString(set) > 1:
				return "", false
			case set != "":
				b.WriteString(set)
				i += n - 1
			default:
				b.WriteByte(c)
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

// literalSet is what stands between [ and ], escapes undone, and the length with the brackets; "" if there is no ].
func literalSet(s string) (set string, n int) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case c == ']':
			return b.String(), i + 1
		default:
			b.WriteByte(c)
		}
	}
	return "", 0
}

// globRegexp translates a pattern: * and ? stay within a segment, ** as a whole segment stands for any number of them.
// One that ends in a slash matches folders, and so only what is below them.
func globRegexp(segments []string, folder bool) string {
	var b strings.Builder
	b.WriteString("^")
	for i, s := range segments {
		if s == "**" {
			if i == len(segments)-1 {
				b.WriteString("(?:/.*)?")
			} else {
				b.WriteString("(?:/[^/]+)*")
			}
			continue
		}
		b.WriteString("/" + segmentRegexp(s))
	}
	if folder {
		b.WriteString("/.*$")
	} else {
		b.WriteString("(?:/.*)?$")
	}
	return "(?s)" + b.String()
}

func segmentRegexp(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		switch c := s[i]; c {
		case '*':
			for i < len(s) && s[i] == '*' {
				i++
			}
			b.WriteString("[^/]*")
		case '?':
			b.WriteString("[^/]")
			i++
		case '[':
			set, n := classRegexp(s[i:])
			b.WriteString(set)
			i += n
		default:
			if c == '\\' && i+1 < len(s) {
				i++
			}
			_, n := utf8.DecodeRuneInString(s[i:])
			b.WriteString(regexp.QuoteMeta(s[i : i+n]))
			i += n
		}
	}
	return b.String()
}

// nothing is a regular expression that matches nothing.
const nothing = `[^\x00-\x{10FFFF}]`

// posixClasses are the classes of a set, as minimatch translates them.
const posixClasses = ` [:alnum:]=\p{L}\p{Nl}\p{Nd} [:alpha:]=\p{L}\p{Nl} [:ascii:]=\x00-\x7f [:blank:]=\p{Zs}\t [:cntrl:]=\p{Cc}` +
	` [:digit:]=\p{Nd} [:lower:]=\p{Ll} [:punct:]=\p{P} [:space:]=\p{Z}\t\r\n\v\f [:upper:]=\p{Lu} [:word:]=\p{L}\p{Nl}\p{Nd}\p{Pc} [:xdigit:]=A-Fa-f0-9 `

// classRegexp translates the set that s begins with, and says how long it is. A [ that is not closed is a character.
func classRegexp(s string) (string, int) {
	var b strings.Builder
	i, negate := 1, false
	if i < len(s) && (s[i] == '!' || s[i] == '^') {
		i, negate = i+1, true
	}
	start, from := i, rune(-1)
	for ; i < len(s); start = -1 {
		if s[i] == ']' && i != start {
			return closeClass(b.String(), negate, i+1, len(s))
		}
		escaped := s[i] == '\\' && i+1 < len(s)
		if escaped {
			i++
		}
		if name := posixClass(s[i:]); name != "" && !escaped {
			if from >= 0 {
				return nothing, len(s)
			}
			_, set, _ := strings.Cut(posixClasses, " "+name+"=")
			set, _, _ = strings.Cut(set, " ")
			b.WriteString(set)
			i += len(name)
			continue
		}
		c, n := utf8.DecodeRuneInString(s[i:])
		i += n
		rest := s[i:]
		switch {
		case from >= 0:
			if c >= from {
				b.WriteString(quoteInClass(from) + "-" + quoteInClass(c))
			}
			from = -1
		case strings.HasPrefix(rest, "-]"):
			b.WriteString(quoteInClass(c) + `\-`)
			i++
		case strings.HasPrefix(rest, "-"):
			from = c
			i++
		default:
			b.WriteString(quoteInClass(c))
		}
	}
	return `\[`, 1
}

// closeClass is a set's regular expression. One without a character in it, as of a range that ends before it begins,
// matches nothing, and with it all of the pattern.
func closeClass(set string, negate bool, n, whole int) (string, int) {
	switch {
	case set == "":
		return nothing, whole
	case negate:
		return "[^/" + set + "]", n
	}
	return "[" + set + "]", n
}

// posixClass is the class that s begins with: [:alpha:]
func posixClass(s string) string {
	end := strings.Index(s, ":]")
	if !strings.HasPrefix(s, "[:") || end < 0 || !strings.Contains(posixClasses, " "+s[:end+2]+"=") {
		return ""
	}
	return s[:end+2]
}

func quoteInClass(c rune) string {
	if strings.ContainsRune(`\[]^-`, c) {
		return `\` + string(c)
	}
	return string(c)
}

// find is the command that lists the files below the roots, and links where these are not followed.
func (g globs) find(follow bool) []string {
	argv := []string{"find", "-P"}
	if follow {
		argv[1] = "-L"
	}
	argv = append(argv, g.roots()...)
	if follow {
		return append(argv, "-type", "f", "-print0")
	}
	return append(argv, "(", "-type", "f", "-o", "-type", "l", ")", "-print0")
}

// match applies the patterns in order: each adds what it matches, or takes it away.
func (g globs) match(file string) bool {
	in := false
	for _, p := range g {
		if p.negate == in && p.re.MatchString(file) {
			in = !p.negate
		}
	}
	return in
}

// roots are the folders to search, none of them within another, in the order of the patterns.
func (g globs) roots() []string {
	var all, roots []string
	for _, p := range g {
		if !p.negate {
			all = append(all, p.root)
		}
	}
	for _, root := range all {
		covered := func(r string) bool { return r != root && within(root, r) }
		if !slices.Contains(roots, root) && !slices.ContainsFunc(all, covered) {
			roots = append(roots, root)
		}
	}
	return roots
}

// within reports whether a path is a folder or below it.
func within(p, folder string) bool {
	return p == folder || strings.HasPrefix(p, strings.TrimSuffix(folder, "/")+"/")
}

// choose returns the files of a list that are in the workspace and match, in the order in which @actions/glob finds
// them: root by root, and in each as a depth-first walk.
func (g globs) choose(list []string, workspace string) []string {
	roots := g.roots()
	var files []string
	for _, f := range list {
		if strings.HasPrefix(f, workspace+"/") && g.match(f) {
			files = append(files, f)
		}
	}
	root := func(f string) int {
		return slices.IndexFunc(roots, func(r string) bool { return within(f, r) })
	}
	slices.SortFunc(files, func(a, b string) int {
		return cmp.Or(cmp.Compare(root(a), root(b)), comparePaths(a, b))
	})
	return slices.Compact(files)
}
