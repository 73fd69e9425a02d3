package github

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/github/githubtest"
)

func decode(t testing.TB, event string, payload []byte) tgr.Event {
	t.Helper()
	ev, err := Decode(event, payload)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func TestChanged(t *testing.T) {
	srv, _ := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	first := commit(t, r, "main", map[string]string{"a": "1", "dir/b": "1"})
	commit(t, r, "feature", map[string]string{"feature ü": "1"})
	feature := commit(t, r, "feature", map[string]string{"more": "1"})
	last := first
	for i := range 52 { // more than the first deepening fetches
		last = commit(t, r, "main", map[string]string{"a": fmt.Sprint(i)})
	}
	renamed, err := r.CommitEntries("main", "rename", githubtest.Entry{Path: "dir/b", Delete: true}, githubtest.Entry{Path: "dir/c", Data: "1"})
	if err != nil {
		t.Fatal(err)
	}
	pull, err := r.OpenPull(nil, "feature", "main")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Branch("same", feature); err != nil {
		t.Fatal(err)
	}
	group := decode(t, "push", r.PushEvent("refs/heads/main", last, renamed))
	group.Name, group.BaseSHA = "merge_group", last
	gone := decode(t, "push", r.PushEvent("refs/heads/feature", first, feature))
	gone.BaseSHA = strings.Repeat("ab", 20)
	for _, tt := range []struct {
		name string
		ev   tgr.Event
		want []string
	}{
		{"push", decode(t, "push", r.PushEvent("refs/heads/main", last, renamed)), []string{"dir/b", "dir/c"}},
		{"push of many commits", decode(t, "push", r.PushEvent("refs/heads/main", first, last)), []string{"a"}},
		{"new branch", decode(t, "push", r.PushEvent("refs/heads/feature", githubtest.Zero, feature)), []string{"feature ü", "more"}},
		{"new default branch", decode(t, "push", r.PushEvent("refs/heads/main", githubtest.Zero, first)), []string{"a", "dir/b"}},
		{"before is gone", gone, []string{"feature ü", "more"}},
		{"tag", decode(t, "push", r.PushEvent("refs/tags/v1", githubtest.Zero, first)), nil},
		{"deleted branch", decode(t, "push", r.PushEvent("refs/heads/feature", feature, githubtest.Zero)), nil},
		{"pull request", decode(t, "pull_request", pull.Event("opened")), []string{"feature ü", "more"}},
		{"merge group", group, []string{"dir/b", "dir/c"}},
		{"dispatch", decode(t, "workflow_dispatch", r.DispatchEvent("refs/heads/main", "ci.yml", nil)), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			src := newSource(t, srv, "")
			sha, err := src.Fetch(t.Context(), tt.ev.Repo, tt.ev.SHA, tt.ev.Ref)
			if tt.ev.Deleted {
				sha, err = "", nil
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.ev.SHA = sha
			for range 2 { // from the server, and from what is there
				got, err := src.Changed(t.Context(), tt.ev)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestChangedWithoutCommonHistory(t *testing.T) {
	srv, src := hub(t, githubtest.Config{}, "")
	r := createRepo(t, srv, "ada/engine")
	commit(t, r, "main", map[string]string{"a": "1"})
	other := createRepo(t, srv, "ada/other")
	orphan := commit(t, other, "main", map[string]string{"b": "1"})
	if _, err := r.Git("fetch", "--quiet", other.Dir, "main:orphan"); err != nil {
		t.Fatal(err)
	}
	ev := decode(t, "push", r.PushEvent("refs/heads/orphan", githubtest.Zero, orphan))
	if _, err := src.Fetch(t.Context(), ev.Repo, ev.SHA, ev.Ref); err != nil {
		t.Fatal(err)
	}
	got, err := src.Changed(t.Context(), ev)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a", "b"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestChangedRefuses(t *testing.T) {
	_, src := hub(t, githubtest.Config{}, "")
	repo := tgr.Repo{ID: 1, FullName: "ada/engine", DefaultBranch: "main"}
	for _, ev := range []tgr.Event{
		{Name: "push", Repo: repo, Ref: "refs/heads/x", SHA: "--output=/tmp/x"},
		{Name: "push", Repo: repo, Ref: "refs/heads/x..y", SHA: strings.Repeat("a", 40)},
		{Name: "push", Repo: tgr.Repo{FullName: "x"}, Ref: "refs/heads/x", SHA: strings.Repeat("a", 40)},
	} {
		if _, err := src.Changed(t.Context(), ev); tgr.CodeOf(err) != tgr.Invalid {
			t.Errorf("%+v: %v", ev, err)
		}
	}
}
