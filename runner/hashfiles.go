package runner

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

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
	g, err := parseGlobs(patterns, r.config.Dirs.Workspace, r.config.Dirs.Home)
	if err != nil {
		return "", err
	}
	if len(g) == 0 {
		return "", nil
	}
	list, err := r.tool(nil, append([]string{"find"}, append(g.roots(), "(", "-type", "f", "-o", "-type", "l", ")", "-print0")...)...)
	if err != nil {
		return "", err
	}
	var files []string
	for _, f := range strings.Split(string(list), "\x00") {
		if strings.HasPrefix(f, r.config.Dirs.Workspace+"/") && g.match(f) {
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return "", nil
	}
	slices.SortFunc(files, comparePaths)
	files = slices.Compact(files)
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
	env, err := r.processEnv(&unit{run: r, sc: r.top, src: &workflow.Step{}}, true, nil)
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
			g := glob{}
			for strings.HasPrefix(line, "!") {
				g.negate, line = !g.negate, strings.TrimSpace(line[1:])
			}
			switch {
			case line == "~" || strings.HasPrefix(line, "~/"):
				line = home + line[1:]
			case !strings.HasPrefix(line, "/"):
				line = workspace + "/" + line
			}
			segments := cleanSegments(line)
			for _, s := range segments {
				if s == ".." {
					return nil, userError("hashFiles: invalid pattern '%s': relative pathing '.' and '..' is not allowed", excerpt(p))
				}
			}
			g.root = literalRoot(segments)
			re, err := regexp.Compile(globRegexp(segments))
			if err != nil {
				return nil, userError("hashFiles: pattern '%s': %v", excerpt(p), err)
			}
			g.re = re
			positive = positive || !g.negate
			list = append(list, g)
		}
	}
	if !positive {
		return nil, nil
	}
	return list, nil
}

func cleanSegments(p string) []string {
	var segments []string
	for _, s := range strings.Split(p, "/") {
		if s != "" && s != "." {
			segments = append(segments, s)
		}
	}
	return segments
}

// literalRoot is the folder of a pattern's leading segments that hold no wildcard.
func literalRoot(segments []string) string {
	n := 0
	for n < len(segments) && !strings.ContainsAny(segments[n], "*?[") {
		n++
	}
	return "/" + strings.Join(segments[:n], "/")
}

// globRegexp translates a pattern: * and ? stay within a segment, ** as a whole segment stands for any number of them.
func globRegexp(segments []string) string {
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
	b.WriteString("(?:/.*)?$")
	return "(?s)" + b.String()
}

func segmentRegexp(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '*':
			for i+1 < len(s) && s[i+1] == '*' {
				i++
			}
			b.WriteString("[^/]*")
		case '?':
			b.WriteString("[^/]")
		case '[':
			if end := strings.IndexByte(s[i+1:], ']'); end > 0 {
				set := s[i+1 : i+1+end]
				b.WriteByte('[')
				if set[0] == '!' || set[0] == '^' {
					b.WriteString("^/")
					set = set[1:]
				}
				b.WriteString(strings.NewReplacer(`\`, `\\`, `[`, `\[`, `^`, `\^`).Replace(set))
				b.WriteByte(']')
				i += end + 1
				continue
			}
			b.WriteString(`\[`)
		case '\\':
			if i+1 < len(s) {
				i++
				b.WriteString(regexp.QuoteMeta(s[i : i+1]))
			}
		default:
			b.WriteString(regexp.QuoteMeta(s[i : i+1]))
		}
	}
	return b.String()
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

// roots are the folders to search, none of them within another.
func (g globs) roots() []string {
	var all []string
	for _, p := range g {
		if !p.negate {
			all = append(all, p.root)
		}
	}
	slices.Sort(all)
	var roots []string
	for _, root := range all {
		covered := slices.ContainsFunc(roots, func(r string) bool { return root == r || strings.HasPrefix(root, path.Join(r, "")+"/") })
		if !covered {
			roots = append(roots, root)
		}
	}
	return roots
}
