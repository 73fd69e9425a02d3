package runner

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFileCommandSuite(t *testing.T) {
	var file struct {
		Cases []struct {
			Kind, Name string
			Content    *string
			BOM        bool
			Want       map[string]string
			WantErr    *string
			WantIssues *int
		}
	}
	suite(t, "file-commands.json", &file)
	if len(file.Cases) == 0 {
		t.Fatal("no cases")
	}
	for _, c := range file.Cases {
		t.Run(c.Name, func(t *testing.T) {
			src := ""
			if c.Content != nil {
				src = *c.Content
			}
			if c.BOM {
				src = "\ufeff" + src
			}
			pairs, err := parsePairs(src)
			if c.WantErr != nil {
				if err == nil || !strings.Contains(err.Error(), *c.WantErr) {
					t.Fatalf("error %v, want %q", err, *c.WantErr)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got, issues := map[string]string{}, 0
			for _, p := range pairs {
				if c.Kind == "SetEnv" && strings.EqualFold(p.Name, "NODE_OPTIONS") {
					issues++
					continue
				}
				got[p.Name] = p.Value
			}
			if diff := cmp.Diff(c.Want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if c.WantIssues != nil && *c.WantIssues != issues {
				t.Errorf("%d issues, want %d", issues, *c.WantIssues)
			}
		})
	}
}

func TestParsePairs(t *testing.T) {
	for _, c := range []struct {
		src  string
		want []pair
		err  string
	}{
		{"A=1\nA=2\n", []pair{{"A", "1"}, {"A", "2"}}, ""},
		{"A = x \n", []pair{{"A ", " x "}}, ""},
		{"A=1\r\n", []pair{{"A", "1\r"}}, ""},
		{"A=x<<y\n", []pair{{"A", "x<<y"}}, ""},
		{"A<<E=1\nx\nE=1", []pair{{"A", "x"}}, ""},
		{"A<<E\n\n\nE\n", []pair{{"A", "\n"}}, ""},
		{"A<<E\nE", []pair{{"A", ""}}, ""},
		{"A<<E\n E\nE \nE\nB=2", []pair{{"A", " E\nE "}, {"B", "2"}}, ""},
		{"A<<E\n", nil, "Matching delimiter not found 'E'"},
		{"A<<E", nil, "Matching delimiter not found 'E'"},
		{"A<<E\nx", nil, "EOF marker missing new line"},
		{"<<E\nE\n", nil, "Name must not be empty"},
		{"A<<\nx\n", nil, "delimiter must not be empty"},
		{"=x", nil, "Name must not be empty"},
		{"A=1\nplain", []pair{{"A", "1"}}, "Invalid format 'plain'"},
		{strings.Repeat("é", 300), nil, "…'"},
	} {
		got, err := parsePairs(c.src)
		if (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: error %v, want %q", c.src, err, c.err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%q: -want +got:\n%s", c.src, diff)
		}
	}
}

func TestParseLines(t *testing.T) {
	got := parseLines("\ufeff/a\r\n\n  \n/b c\n/d")
	if diff := cmp.Diff([]string{"/a", "/b c", "/d"}, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func FuzzParsePairs(f *testing.F) {
	for _, s := range []string{"A=1\n", "A<<E\nx\nE\n", "\ufeffA<<<E\n<E", "=", "<<", "A<<E\nE", "\n\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		pairs, _ := parsePairs(src)
		total := 0
		for _, p := range pairs {
			if p.Name == "" || strings.Contains(p.Name, "\n") {
				t.Fatalf("%q: name %q", src, p.Name)
			}
			total += len(p.Name) + len(p.Value)
		}
		if total > len(src) {
			t.Fatalf("%q grew to %q", src, pairs)
		}
		// What a parsed file means survives being written again as heredocs.
		var b strings.Builder
		for _, p := range pairs {
			if strings.ContainsAny(p.Name, "<=") || strings.Contains("\n"+p.Value+"\n", "\nghadelimiter\n") {
				return
			}
			b.WriteString(p.Name + "<<ghadelimiter\n" + p.Value + "\nghadelimiter\n")
		}
		again, err := parsePairs(b.String())
		if err != nil {
			t.Fatalf("%q: %v", b.String(), err)
		}
		if diff := cmp.Diff(pairs, again); diff != "" && !strings.HasPrefix(b.String(), "\ufeff") {
			// An empty value is written as one empty line, and is read so.
			for i := range pairs {
				if pairs[i] != again[i] && !(pairs[i].Value == "" && again[i].Value == "") {
					t.Fatalf("-want +got:\n%s", diff)
				}
			}
		}
	})
}
