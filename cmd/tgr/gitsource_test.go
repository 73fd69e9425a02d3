package main

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/github/githubtest"
	"github.com/terraphim/tgr/workflow"
)

// A workflow of another owner is read as the jobs of the event could, with a token that is made when it is needed and is gone
// after that.
func TestWorkflowWithTheJobsToken(t *testing.T) {
	hub, err := githubtest.New(githubtest.Config{Dir: t.TempDir(), Token: "of a job"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hub.Close() })
	const file = ".github/workflows/x.yml"
	for name, private := range map[string]bool{"other/free": false, "other/shared": true} {
		repo, err := hub.CreateRepo(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := repo.Commit("main", "x", map[string]string{file: name}); err != nil {
			t.Fatal(err)
		}
		repo.SetPrivate(private)
	}
	src, err := github.NewSource(github.SourceConfig{Dir: t.TempDir(), BaseURL: hub.URL})
	if err != nil {
		t.Fatal(err)
	}
	var asked []dispatch.TokenRequest
	revoked := 0
	tokens := func(_ context.Context, r dispatch.TokenRequest) (dispatch.Token, error) {
		asked = append(asked, r)
		return dispatch.Token{Value: "of a job", Revoke: func(context.Context) error { revoked++; return nil }}, nil
	}
	s := gitSource{Source: src, tokens: tokens}
	ev := tgr.Event{Name: "pull_request", Forked: true, Repo: tgr.Repo{ID: 7, FullName: "acme/app"}}
	if w, err := s.Workflow(t.Context(), ev, "other/free", "main", file); err != nil || string(w.Data) != "other/free" || len(asked) != 0 {
		t.Errorf("a public one: %+v, %v, with %d tokens", w, err, len(asked))
	}
	if w, err := s.Workflow(t.Context(), ev, "other/shared", "main", file); err != nil || string(w.Data) != "other/shared" {
		t.Errorf("one that the token may read: %+v, %v", w, err)
	}
	want := []dispatch.TokenRequest{{Repo: ev.Repo, Permissions: []workflow.Permissions{{"contents": "read"}}, ReadOnly: true}}
	if diff := cmp.Diff(want, asked); diff != "" || revoked != 1 {
		t.Errorf("tokens (-want +got), %d were revoked:\n%s", revoked, diff)
	}
	s.tokens = nil
	if _, err := s.Workflow(t.Context(), ev, "other/shared", "main", file); tgr.CodeOf(err) != tgr.NotFound {
		t.Errorf("without a token: %v", err)
	}
}
