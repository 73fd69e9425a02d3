package runner

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// maxSubjects bounds the artifacts that the steps of a job declare.
const maxSubjects = 500

// subject is an artifact that a step has declared in GITHUB_ARTIFACTS.
type subject struct {
	Name   string `json:"name"`
	Digest string `json:"digest"`
	Kind   string `json:"kind"` // file or oci
}

// The forms of a line: another scheme, and an image with its digest.
var (
	anyScheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*://`)
	ociDigest = regexp.MustCompile(`^(.+)@(sha256|sha384|sha512):([0-9a-fA-F]+)$`)
)

// artifactLine is what one line of GITHUB_ARTIFACTS declares: an image, or a file whose digest is still to be found.
type artifactLine struct {
	number int
	image  subject
	file   string // as it was written
	at     string // in the machine
}

// artifacts takes what a step wrote to GITHUB_ARTIFACTS: one artifact per line, a file or an image with its digest. Lines
// that are empty or begin with # do not count. Nothing is declared if a line is broken. The words are GitHub's.
//
// https://github.com/actions/runner/blob/main/src/Runner.Worker/CreateArtifactsFileCommand.cs
func (u *unit) artifacts(src string) error {
	var lines []artifactLine
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(src, "\ufeff")) {
		number++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		a, err := u.artifactLine(line)
		if err != nil {
			return badArtifact(number, err)
		}
		a.number = number
		if lines = append(lines, a); len(lines) > 2*maxSubjects {
			return badArtifact(number, userError("The job has exceeded the maximum of %d declared artifacts.", maxSubjects))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return u.declare(lines)
}

func badArtifact(line int, err error) error {
	if isOurs(err) {
		return err
	}
	return userError("Invalid $GITHUB_ARTIFACTS entry on line %d: %v", line, err)
}

// artifactLine reads one line.
func (u *unit) artifactLine(line string) (artifactLine, error) {
	if strings.Contains(line, "=") {
		return artifactLine{}, userError("entries containing '=' are reserved and not permitted")
	}
	scheme := strings.ToLower(anyScheme.FindString(line))
	rest := line[len(scheme):]
	m := ociDigest.FindStringSubmatch(rest)
	digits := map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}
	switch {
	case scheme == "file://" && strings.TrimSpace(rest) == "":
		return artifactLine{}, userError("file:// entries must include a path")
	case scheme == "file://":
	case scheme == "oci://" && m == nil:
		return artifactLine{}, userError("oci:// entries must include an @sha{256,384,512}:<hex> digest")
	case scheme == "oci://" && len(m[3]) != digits[m[2]]:
		return artifactLine{}, userError("digest '%s' must be %d hex characters, got %d", m[2], digits[m[2]], len(m[3]))
	case scheme != "" && scheme != "oci://":
		return artifactLine{}, userError("unsupported URI scheme")
	case m != nil && len(m[3]) == digits[m[2]]:
		return artifactLine{image: subject{Name: m[1], Digest: m[2] + ":" + strings.ToLower(m[3]), Kind: "oci"}}, nil
	}
	a := artifactLine{file: rest, at: rest}
	if !path.IsAbs(rest) { // below the workspace, whatever the step's working directory
		a.at = path.Join(u.run.config.Dirs.Workspace, rest)
	} else if out := u.at().outside(rest); out != rest {
		a.at = out
	}
	return a, nil
}

// declare finds the digests of files and adds all to the job's artifacts.
func (u *unit) declare(lines []artifactLine) error {
	r := u.run
	digests, err := r.digests(lines)
	if err != nil {
		return err
	}
	all := slices.Clone(r.subjects)
	for _, l := range lines {
		s := l.image
		if l.file != "" {
			digest, ok := digests[path.Clean(l.at)]
			switch {
			case !ok && path.IsAbs(l.file):
				return badArtifact(l.number, userError("file '%s' does not exist, or is not a regular file", excerpt(l.file)))
			case !ok:
				return badArtifact(l.number, userError("file '%s' does not exist, or is not a regular file (relative paths are resolved against the workspace root '%s')", excerpt(l.file), r.config.Dirs.Workspace))
			}
			s = subject{Name: path.Base(l.at), Digest: "sha256:" + digest, Kind: "file"}
		}
		i := slices.IndexFunc(all, func(have subject) bool { return have.Name == s.Name })
		switch {
		case i >= 0 && all[i].Digest == s.Digest:
			continue
		case i >= 0:
			return badArtifact(l.number, userError("Conflicting digest for artifact '%s': previously declared as '%s', now declared as '%s'.", excerpt(s.Name), all[i].Digest, s.Digest))
		case len(all) >= maxSubjects:
			return badArtifact(l.number, userError("The job has exceeded the maximum of %d declared artifacts.", maxSubjects))
		}
		all = append(all, s)
	}
	if n := len(all) - len(r.subjects); n > 0 {
		r.log(u.rec, fmt.Sprintf("Captured %d artifact subject(s) from this step (job total: %d).", n, len(all)))
	}
	r.subjects = all
	return nil
}

// digests hashes the files among the lines in the machine: they may be large. What is not a regular file has none.
func (r *run) digests(lines []artifactLine) (map[string]string, error) {
	var paths []string
	for _, l := range lines {
		if l.file != "" {
			paths = append(paths, path.Clean(l.at))
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	// A pipe would never end: only what is a regular file is read.
	found, err := r.tool(nil, slices.Concat([]string{"find", "-L"}, paths, []string{"-maxdepth", "0", "-type", "f", "-print0"})...)
	if err != nil {
		return nil, err
	}
	files := strings.FieldsFunc(string(found), func(c rune) bool { return c == 0 })
	if len(files) == 0 {
		return nil, nil
	}
	sums, err := r.tool(nil, slices.Concat([]string{"sha256sum", "--zero", "--"}, files)...)
	if err != nil {
		return nil, err
	}
	digests := map[string]string{}
	for entry := range bytes.SplitSeq(sums, []byte{0}) {
		if sum, name, ok := strings.Cut(string(entry), "  "); ok && len(sum) == 64 {
			digests[name] = sum
		}
	}
	return digests, nil
}

// artifactsList is what GITHUB_ARTIFACTS_LIST holds for the next step: what those before it have declared.
func (r *run) artifactsList() []byte {
	list := struct {
		Version  int       `json:"version"`
		Subjects []subject `json:"subjects"`
	}{1, slices.SortedFunc(slices.Values(r.subjects), func(a, b subject) int { return cmp.Compare(a.Name, b.Name) })}
	if list.Subjects == nil {
		list.Subjects = []subject{}
	}
	b, _ := json.Marshal(list) // strings and numbers
	return b
}
