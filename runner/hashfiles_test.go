package runner

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestGlobs(t *testing.T) {
	files := []string{"/w/go.sum", "/w/a/go.sum", "/w/a/b/go.sum", "/w/a/b/x.txt", "/w/.hidden", "/w/a/[x]", "/w/ab", "/w/a-1", "/h/home"}
	for _, c := range []struct {
		patterns string
		want     string
	}{
		{"go.sum", "/w/go.sum"},
		{"./go.sum", "/w/go.sum"},
		{"**/go.sum", "/w/go.sum /w/a/go.sum /w/a/b/go.sum"},
		{"*/go.sum", "/w/a/go.sum"},
		{"a", "/w/a/go.sum /w/a/b/go.sum /w/a/b/x.txt /w/a/[x]"},
		{"a/**", "/w/a/go.sum /w/a/b/go.sum /w/a/b/x.txt /w/a/[x]"},
		{"a/**/x.txt", "/w/a/b/x.txt"},
		{"*", "/w/go.sum /w/a/go.sum /w/a/b/go.sum /w/a/b/x.txt /w/.hidden /w/a/[x] /w/ab /w/a-1"},
		{"a?", "/w/ab"},
		{"a[b-c]", "/w/ab"},
		{"a[!b]?", "/w/a-1"},
		{"**/go.sum\n!a/b", "/w/go.sum /w/a/go.sum"},
		{"!a/b\n**/go.sum", "/w/go.sum /w/a/go.sum /w/a/b/go.sum"},
		{"# comment\n\n  go.sum  ", "/w/go.sum"},
		{"!go.sum", ""},
		{"~/home", "/h/home"},
		{"/w/ab", "/w/ab"},
		{`a/\[x\]`, "/w/a/[x]"},
		{"a/[[]x]", "/w/a/[x]"},
		{"nothing", ""},
		{"a/**.txt", ""},
		{"**.hidden", "/w/.hidden"},
		{"(a|b)+", ""},
	} {
		g, err := parseGlobs([]string{c.patterns}, "/w", "/h")
		if err != nil {
			t.Errorf("%q: %v", c.patterns, err)
			continue
		}
		var got []string
		for _, f := range files {
			if g.match(f) {
				got = append(got, f)
			}
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.patterns, s, c.want)
		}
	}
	if _, err := parseGlobs([]string{"../x"}, "/w", "/h"); err == nil {
		t.Error("a pattern went up")
	}
}

func TestGlobRoots(t *testing.T) {
	g, err := parseGlobs([]string{"a/b/*.go", "a", "c/**/x", "!d/e", "a/bc"}, "/w", "/h")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/w/a", "/w/c"}, g.roots()); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestComparePaths(t *testing.T) {
	files := []string{"/w/b", "/w/a/z", "/w/a-1", "/w/a", "/w/B"}
	slices.SortFunc(files, comparePaths)
	if diff := cmp.Diff([]string{"/w/B", "/w/a", "/w/a/z", "/w/a-1", "/w/b"}, files); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzGlobs(f *testing.F) {
	for _, s := range []string{"**/*.go", "[!a-z]*", "a[", "a[]b]", "!x\n#y", `\`, "~", "[z-a]", "[[:alpha:]]", "[\\]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, pattern string) {
		g, err := parseGlobs([]string{pattern}, "/w", "/h")
		if err != nil {
			return
		}
		g.match("/w/a/b/c.go")
		for _, root := range g.roots() {
			if !strings.HasPrefix(root, "/") {
				t.Fatalf("%q: root %q", pattern, root)
			}
		}
	})
}
