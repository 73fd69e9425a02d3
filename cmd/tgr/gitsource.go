package main

import (
	"context"
	"log/slog"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/terraphim/tgr"
	"github.com/terraphim/tgr/dispatch"
	"github.com/terraphim/tgr/github"
	"github.com/terraphim/tgr/runner"
	"github.com/terraphim/tgr/workflow"
)

const workflowDir = ".github/workflows"

// gitSource lets dispatch and the runner use the cached clones.
type gitSource struct {
	*github.Source
	ids *identities // nil: what payloads say is taken for granted
}

// Fetch implements dispatch.Source.
func (s gitSource) Fetch(ctx context.Context, ev tgr.Event) (tgr.Event, error) {
	if err := s.ids.check(ctx, ev.Repo); err != nil {
		return ev, err
	}
	sha, err := s.Source.Fetch(ctx, ev.Repo, ev.SHA, ev.Ref)
	if tgr.CodeOf(err) == tgr.NotFound && strings.HasPrefix(ev.Ref, "refs/pull/") && ev.HeadSHA != "" && ev.HeadSHA != ev.SHA {
		// The merge commit of a pull request goes when the next push comes; its head stays. For no other ref: what runs with
		// secrets would run what anybody wrote.
		sha, err = s.Source.Fetch(ctx, ev.Repo, ev.HeadSHA, "")
	}
	if branch, ok := strings.CutPrefix(ev.Ref, "refs/heads/"); ok && ev.Name == "workflow_dispatch" && tgr.CodeOf(err) == tgr.NotFound {
		// Who starts a workflow by hand may name a tag.
		if tag, terr := s.Source.Fetch(ctx, ev.Repo, ev.SHA, "refs/tags/"+branch); terr == nil {
			ev.Ref, sha, err = "refs/tags/"+branch, tag, nil
		}
	}
	if err != nil {
		return ev, err
	}
	ev.SHA = sha
	if ev.Tree, err = s.Tree(ctx, ev.Repo, sha); err != nil {
		return ev, err
	}
	if ev.HeadSHA == "" {
		ev.HeadSHA = sha
	}
	return ev, nil
}

// Workflows implements dispatch.Source.
func (s gitSource) Workflows(ctx context.Context, ev tgr.Event) ([]dispatch.File, error) {
	files, err := s.Files(ctx, ev.Repo, ev.SHA, workflowDir)
	if err != nil {
		return nil, err
	}
	var out []dispatch.File
	for _, f := range files {
		if !isWorkflow(f.Path) {
			continue
		}
		out = append(out, dispatch.File{Path: f.Path, Data: f.Data, Err: f.Err})
	}
	return out, nil
}

// Workflow implements dispatch.Source. Whoever runs a workflow sees no more of a private repository's than what its jobs print,
// as with its actions.
func (s gitSource) Workflow(ctx context.Context, ev tgr.Event, repo, ref, path string) (workflow.Loaded, error) {
	if repo == "" {
		data, err := s.ReadFile(ctx, ev.Repo, ev.SHA, path)
		return workflow.Loaded{File: path, Data: data}, err
	}
	full, sha, data, err := s.RemoteFile(ctx, repo, ref, path)
	return workflow.Loaded{Data: data, Repo: repo, Ref: full, SHA: sha}, err
}

// isWorkflow reports whether GitHub would take a path for a workflow: YAML, and not in a folder below.
func isWorkflow(p string) bool {
	return path.Dir(p) == workflowDir && (strings.HasSuffix(p, ".yml") || strings.HasSuffix(p, ".yaml"))
}

// Checkout implements dispatch.Source.
func (s gitSource) Checkout(ev tgr.Event) runner.CheckoutSource { return checkoutSource{s.Source, ev} }

// Actions implements dispatch.Source.
func (s gitSource) Actions(tgr.Event) runner.ActionSource { return s.Source }

// checkoutSource serves actions/checkout for the jobs of one event.
type checkoutSource struct {
	source *github.Source
	ev     tgr.Event
}

// Checkout implements runner.CheckoutSource.
func (c checkoutSource) Checkout(ctx context.Context, r runner.CheckoutRequest) (runner.CheckoutResult, error) {
	repo, sha, ref := c.ev.Repo, r.SHA, r.Ref
	foreign := !strings.EqualFold(r.Repository, repo.FullName)
	if foreign {
		repo = tgr.Repo{FullName: r.Repository}
	} else if ref == "" {
		ref = c.ev.Ref
	}
	if r.Filter != "" {
		return runner.CheckoutResult{}, tgr.Errorf("checkout", tgr.Invalid, "filter: partial clones are not served here; sparse-checkout works without")
	}
	got, err := c.source.Checkout(ctx, github.CheckoutSpec{
		Repo: repo, Ref: ref, SHA: sha, Depth: r.FetchDepth, Tags: r.FetchTags, Submodules: r.Submodules,
		Sparse: r.SparseCheckout, NoCone: !r.SparseConeMode, Token: persisted(r),
		// The server's own token is for the job's repository alone: with it a job could read any other.
		Foreign: foreign, FetchToken: r.Token,
	})
	if err != nil {
		return runner.CheckoutResult{}, err
	}
	return runner.CheckoutResult{SHA: got.SHA, Ref: got.Ref, Tar: got.Tar}, nil
}

func persisted(r runner.CheckoutRequest) string {
	if r.PersistCredentials {
		return r.Token
	}
	return ""
}

// newGitSource makes the source of a server.
func newGitSource(c *config, auth func(ctx context.Context, repo string) (string, error), log *slog.Logger) (gitSource, error) {
	minutes, err := c.number("plan-timeout", 1, 600)
	if err != nil {
		return gitSource{}, err
	}
	s, err := github.NewSource(github.SourceConfig{Dir: c.get("repository-path"), BaseURL: c.get("github-server-url"), Token: auth, Log: log,
		Timeout: time.Duration(minutes) * time.Minute, Remote: mirrorOf(c.get("actions-mirror"))})
	return gitSource{Source: s}, err
}

// mirrorOf finds repositories in a folder. Those that events come from have an address, and are never taken from there.
func mirrorOf(dir string) func(tgr.Repo) string {
	return func(r tgr.Repo) string {
		owner, name, ok := strings.Cut(r.FullName, "/")
		if dir == "" || r.CloneURL != "" || !ok || !filepath.IsLocal(owner) || !filepath.IsLocal(name) {
			return ""
		}
		for _, p := range []string{filepath.Join(dir, owner, name+".git"), filepath.Join(dir, owner, name)} {
			if abs, err := filepath.Abs(p); err == nil && isDir(abs) {
				return (&url.URL{Scheme: "file", Path: abs}).String()
			}
		}
		return ""
	}
}
