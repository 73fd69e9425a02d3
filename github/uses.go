package github

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/terraphim/tgr"
)

// Reader is the run for which code is fetched that its workflow names with uses: actions and reusable workflows. A
// workflow may name any repository, so that whose credentials count depends on the run:
//
//   - for the run's own repository, and where the run is trusted for others of the same owner, the source's own. That is
//     what GitHub calls accessible from repositories of the same owner;
//   - for any other, none; and the job's own token where a server shows nothing without.
//
// https://docs.github.com/en/actions/how-tos/reuse-automations/share-across-private-repositories
type Reader struct {
	Repo    string // owner/name of the run's repository
	SHA     string // the run's commit, which may be on no branch: that of a pull request
	Trusted bool   // nobody from outside wrote what runs
	// Token returns the job's own token, "" for none. It is called where that is needed; nil: there is none.
	Token func(context.Context) (string, error)
}

// owns reports whether the reader reads a repository with the source's own credentials.
func (r Reader) owns(name string) bool {
	owner, _, _ := strings.Cut(name, "/")
	own, _, _ := strings.Cut(r.Repo, "/")
	return strings.EqualFold(name, r.Repo) || r.Trusted && strings.EqualFold(owner, own)
}

// paths are the repositories that the reader reads with the source's own credentials, as the beginning of what follows a
// server's address.
func (r Reader) paths() []string {
	owner, _, ok := strings.Cut(r.Repo, "/")
	switch {
	case !ok || owner == "":
		return nil
	case r.Trusted:
		return []string{owner}
	}
	return []string{r.Repo, r.Repo + ".git"}
}

// refuse is the error where the server shows a reader no repository of that name: GitHub does not tell a private one from
// one that does not exist.
func (r Reader) refuse(name string, err error) error {
	owner, _, _ := strings.Cut(r.Repo, "/")
	why := "the server's credentials may not read it"
	switch {
	case r.owns(name):
	case r.Trusted:
		why = "it is private: with the server's credentials only repositories of " + owner + " are read, and the job's own token may not read it"
	default:
		why = "a run of a fork, or of Dependabot, may not read it: it reads public repositories, and " + r.Repo
	}
	return &tgr.Error{Op: "source.uses", Code: tgr.NotFound, Message: name + ": not found, or " + why, Err: err}
}

// use finds the commit of what a workflow names, as the reader may, and makes the clone fetch it so. What is cached is
// for readers who could fetch it: the server is asked again unless the commit is known to be theirs to read.
func (c *clone) use(ctx context.Context, r Reader, ref string) (full, sha string, err error) {
	c.foreign = true
	if !r.owns(c.name) {
		c.token = new(string) // anonymously
	}
	switch {
	case ref == "":
		return "", "", tgr.Errorf("source.uses", tgr.Invalid, "%s has no ref: write %s@<branch, tag or commit>", c.name, c.name)
	case strings.HasPrefix(ref, "refs/") && !inHistories(ref):
		return "", "", tgr.Errorf("source.uses", tgr.Invalid, "%s of %s is neither a branch nor a tag: what a workflow uses has to be in the history of one", clip(ref, 100), c.name)
	case shaPattern().MatchString(ref) && c.mayHave(ref), ref == r.SHA && strings.EqualFold(c.name, r.Repo):
		return "", ref, nil // it costs no network
	}
	full, sha, err = c.find(ctx, ref)
	if c.token != nil && refused(err) && r.Token != nil {
		token, terr := r.Token(ctx)
		if terr != nil {
			return "", "", c.fail("uses", "the job's token for "+ref, terr)
		}
		if token != "" {
			c.token = &token
			full, sha, err = c.find(ctx, ref)
		}
	}
	if refused(err) {
		return "", "", r.refuse(c.name, err)
	}
	if err != nil {
		return "", "", c.fail("uses", "ref "+ref, err)
	}
	c.know(sha)
	return full, sha, nil
}

// inHistories reports whether a ref is one whose history is the repository's own.
func inHistories(ref string) bool {
	return strings.HasPrefix(ref, "refs/heads/") || strings.HasPrefix(ref, "refs/tags/")
}

// find is the commit that a branch, a tag or a SHA names. A server has the commits of all forks of a repository in one
// place, and hands out each under the name of all of them, so that a SHA has to be in the history of a branch or a tag.
func (c *clone) find(ctx context.Context, ref string) (full, sha string, err error) {
	if !shaPattern().MatchString(ref) {
		return c.resolve(ctx, ref)
	}
	tips, err := c.lsRemote(ctx, "refs/heads/*", "refs/tags/*") // of annotated tags the commits too
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(tips) {
		if sha, name, _ := strings.Cut(strings.TrimSpace(line), "\t"); sha == ref && inHistories(name) {
			return "", ref, nil
		}
	}
	if c.known(ref) != "" { // it was found before, and the server still shows the repository
		return "", ref, nil
	}
	return "", ref, c.inHistory(ctx, ref)
}

// historyTime is how long it may take to fetch the history of a repository, which is its commits without their files.
const historyTime = 2 * time.Minute

// inHistory asks the remote for the history of all branches and tags, and looks for a commit there. The history is kept,
// so that the next one costs only what is new; and apart from the clone, which is shallow and has other commits too.
func (c *clone) inHistory(ctx context.Context, sha string) error {
	h := &clone{s: c.s, name: c.name, remote: c.remote, token: c.token, foreign: true, dir: strings.TrimSuffix(c.dir, ".git") + ".history.git"}
	ctx, cancel := context.WithTimeoutCause(ctx, historyTime, fmt.Errorf("%w: no answer within %v", context.DeadlineExceeded, historyTime))
	defer cancel()
	unlock, err := h.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	refs := []string{"+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"}
	err = h.fetch(ctx, "--filter=tree:0", refs...) // a server that knows no filter sends everything
	if err != nil && !refused(err) && ctx.Err() == nil && !errors.Is(err, context.DeadlineExceeded) {
		err = h.fetch(ctx, "--no-filter", refs...) // there are tags of trees, which the filter leaves out
	}
	if err != nil {
		return fmt.Errorf("whether commit %s is on a branch or tag: %w", sha, err)
	}
	if h.has(ctx, sha) {
		out, err := h.git(ctx, "for-each-ref", "--count=1", "--contains="+sha)
		if err != nil || len(out) > 0 {
			return err
		}
	}
	return tgr.Errorf("source.uses", tgr.NotFound, "commit %s belongs to no branch or tag of %s: it is of a fork, if it is there at all", sha, c.name)
}

// refused reports whether the server showed no repository, as opposed to one without a ref.
func refused(err error) bool {
	var g *gitError
	if !errors.As(err, &g) {
		return false
	}
	code := codeOfGit(err)
	return code == tgr.NotFound || code == tgr.Unauthorized
}

// What is known of a commit that a workflow named. A commit that could be read without credentials once is nothing
// that could be kept from anybody.
const (
	knownPublic = "public"
	knownOwn    = "own" // it was read with credentials; perhaps it is public too
)

// known is what is known of a commit; "": it was never used.
func (c *clone) known(sha string) string {
	data, err := os.ReadFile(c.knownFile(sha))
	if err != nil {
		return ""
	}
	return string(data)
}

// mayHave reports whether the clone's credentials allow what is cached of a commit, without asking the server.
func (c *clone) mayHave(sha string) bool {
	known := c.known(sha)
	return known == knownPublic || known == knownOwn && c.token == nil
}

// know notes that a commit was found with the clone's credentials.
func (c *clone) know(sha string) {
	now := knownOwn
	if c.token != nil && *c.token == "" {
		now = knownPublic
	}
	if was := c.known(sha); was == now || was == knownPublic {
		return
	}
	if err := writeNote(c.knownFile(sha), now); err != nil { // the server is asked again
		c.s.c.Log.Warn("remember a commit that a workflow uses", "repo", c.name, "commit", sha, "error", err)
	}
}

func (c *clone) knownFile(sha string) string { return filepath.Join(c.dir, "known", sha) }
