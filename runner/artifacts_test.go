package runner

import (
	"path"
	"strings"
	"testing"
)

// A line of GITHUB_ARTIFACTS, which a step writes, is refused, or names one file by its absolute path, or one image by a
// whole digest.
func FuzzArtifactLine(f *testing.F) {
	for _, line := range []string{"dist/app.tar", "file:///etc/passwd", "oci://ghcr.io/a/b@sha256:" + strings.Repeat("aB", 32), "x@sha256:12",
		"FILE://-rf", "../../x", "http://x/y", "file:// ", "a=b", "oci://@sha512:", "\xff\x00"} {
		f.Add(line)
	}
	u, _ := newTestUnit(f, Limits{})
	u.run.config.Dirs.Workspace = "/work/r/r"
	f.Fuzz(func(t *testing.T, line string) {
		if line = strings.TrimSpace(line); line == "" {
			return
		}
		a, err := u.artifactLine(line)
		switch {
		case err != nil:
		case a.file == "":
			kind, digest, ok := strings.Cut(a.image.Digest, ":")
			if !ok || a.image.Name == "" || len(digest) != map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}[kind] || strings.Trim(digest, "0123456789abcdef") != "" {
				t.Fatalf("%q is the image %+v", line, a.image)
			}
		case !path.IsAbs(a.at):
			t.Fatalf("%q is at %q, which could be taken for a flag", line, a.at)
		}
	})
}
