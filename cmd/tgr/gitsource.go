package main

import (
	"context"
	"io"
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
	ids    *identities     // nil: what payloads say is taken for granted
	tokens dispatch.Tokens // of jobs; nil: they have none
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

// readerOf is the run of an event, for what its workflow names with uses.
func readerOf(ev tgr.Event, token func(context.Context) (string, error)) github.Reader {
	return github.Reader{Repo: ev.Repo.FullName, SHA: ev.SHA, Trusted: dispatch.Trusted(ev), Token: token}
}

// jobReader is likewise a job of the event that has a token.
func jobReader(ev tgr.Event, token string) github.Reader {
	return readerOf(ev, func(context.Context) (string, error) { return token, nil })
}

// Workflow implements dispatch.Source.
func (s gitSource) Workflow(ctx context.Context, ev tgr.Event, repo, ref, path string) (workflow.Loaded, error) {
	if repo == "" {
		data, err := s.ReadFile(ctx, ev.Repo, ev.SHA, path)
		return workflow.Loaded{File: path, Data: data}, err
	}
	token, done := s.lend(ctx, ev)
	defer done()
	full, sha, data, err := s.RemoteFile(ctx, readerOf(ev, token), repo, ref, path)
	return workflow.Loaded{Data: data, Repo: repo, Ref: full, SHA: sha}, err
}

// lend makes, when it is asked for, a token like those of the event's jobs, of which there are none yet: it reads the
// repository of the event, and what its server shows everybody who has a token. done ends its life.
func (s gitSource) lend(ctx context.Context, ev tgr.Event) (token func(context.Context) (string, error), done func()) {
	if s.tokens == nil {
		return nil, func() {}
	}
	var t dispatch.Token
	return func(ctx context.Context) (_ string, err error) {
			t, err = s.tokens(ctx, dispatch.TokenRequest{
				Repo: ev.Repo, Permissions: []workflow.Permissions{{"contents": "read"}}, ReadOnly: !dispatch.Trusted(ev),
			})
			return t.Value, err
		}, func() {
			if t.Revoke != nil {
				_ = t.Revoke(context.WithoutCancel(ctx)) // it reads and no more, and expires by itself
			}
		}
}

// Message implements dispatch.Source.
func (s gitSource) Message(ctx context.Context, ev tgr.Event) (string, error) {
	ref := "" // of its own the head of a fork is in none
	if pull, ok := strings.CutSuffix(ev.Ref, "/merge"); ok && strings.HasPrefix(ev.Ref, "refs/pull/") {
		ref = pull + "/head"
	}
	sha, err := s.Source.Fetch(ctx, ev.Repo, ev.HeadSHA, ref)
	if err != nil {
		return "", err
	}
	return s.Source.Message(ctx, ev.Repo, sha)
}

// isWorkflow reports whether GitHub would take a path for a workflow: YAML, and not in a folder below.
func isWorkflow(p string) bool {
	return path.Dir(p) == workflowDir && (strings.HasSuffix(p, ".yml") || strings.HasSuffix(p, ".yaml"))
}

// Checkout implements dispatch.Source.
func (s gitSource) Checkout(ev tgr.Event, token string) runner.CheckoutSource {
	return checkoutSource{s.Source, ev, jobReader(ev, token)}
}

// Actions implements dispatch.Source.
func (s gitSource) Actions(ev tgr.Event, token string) runner.ActionSource {
	return actionSource{s.Source, jobReader(ev, token)}
}

// actionSource serves remote actions to one job.
type actionSource struct {
	source *github.Source
	reader github.Reader
}

// Action implements runner.ActionSource.
func (a actionSource) Action(ctx context.Context, repo, ref string) (string, io.ReadCloser, error) {
	return a.source.Action(ctx, a.reader, repo, ref)
}

// checkoutSource serves actions/checkout for the jobs of one event.
type checkoutSource struct {
	source *github.Source
	ev     tgr.Event
	reader github.Reader
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
		Foreign: foreign, FetchToken: r.Token, For: c.reader,
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

// newGitSource makes the source of a server. auth yields the server's own credentials, tokens those of jobs.
func newGitSource(c *config, auth func(ctx context.Context, repo string) (string, error), tokens dispatch.Tokens, log *slog.Logger) (gitSource, error) {
	minutes, err := c.number("plan-timeout", 1, 600)
	if err != nil {
		return gitSource{}, err
	}
	s, err := github.NewSource(github.SourceConfig{Dir: c.get("repository-path"), BaseURL: c.get("github-server-url"), Token: auth, Log: log,
		Timeout: time.Duration(minutes) * time.Minute, Remote: mirrorOf(c.get("actions-mirror"))})
	return gitSource{Source: s, tokens: tokens}, err
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
