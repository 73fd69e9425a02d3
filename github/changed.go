package github

import (
	"context"
	"strings"

	"github.com/terraphim/tgr"
)

// emptyTree is the name of the tree without entries in a SHA-1 repository: git knows it without having it.
const emptyTree = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"

// Changed lists the paths that an event changed, as path filters compare them; of a renamed file both names. For
//
//   - a push, what differs between before and after; of a new branch, or where before is gone, what differs from
//     where it left the default branch; of the default branch itself, every file;
//   - a pull request, what its head changed since it left the base branch (three dots);
//   - a merge group, what differs from its base.
//
// No other event has path filters, nor has a push of a tag: the answer is nil. History is fetched only where a
// common ancestor has to be found, and only as much of it as is needed. The event's commit must have been fetched.
func (s *Source) Changed(ctx context.Context, ev tgr.Event) ([]string, error) {
	c, err := s.clone(ev.Repo)
	if err != nil {
		return nil, err
	}
	for _, sha := range []string{ev.SHA, ev.HeadSHA, ev.BaseSHA} {
		if sha != "" && !shaPattern().MatchString(sha) {
			return nil, tgr.Errorf("source.changed", tgr.Invalid, "%q is not a SHA", clip(sha, 100))
		}
	}
	for _, ref := range []string{ev.Ref, branchRef(ev.BaseRef), branchRef(ev.Repo.DefaultBranch)} {
		if ref != "" && !validRef(ref) {
			return nil, tgr.Errorf("source.changed", tgr.Invalid, "%q is not a ref", clip(ref, 100))
		}
	}
	from, to := "", ev.SHA
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, c.fail("changed", "the changes", err)
	}
	defer unlock()
	switch {
	case ev.Name == "push" && strings.HasPrefix(ev.Ref, "refs/heads/") && !ev.Deleted:
		from, err = c.pushBase(ctx, ev)
	case ev.Name == "pull_request" || ev.Name == "pull_request_target":
		to = ev.HeadSHA
		pull := ""
		if !strings.HasPrefix(ev.Ref, "refs/heads/") {
			pull = strings.TrimSuffix(ev.Ref, "merge") + "head"
		}
		from, err = c.ancestor(ctx, tip{ev.BaseSHA, branchRef(ev.BaseRef)}, tip{ev.HeadSHA, pull})
	case ev.Name == "merge_group":
		from = ev.BaseSHA
		err = c.need(ctx, from, branchRef(ev.BaseRef))
	default:
		return nil, nil
	}
	if err != nil {
		return nil, c.fail("changed", "the base of the changes in "+to, err)
	}
	out, err := c.git(ctx, "diff-tree", "-r", "-z", "--name-only", "--no-renames", from, to)
	if err != nil {
		return nil, c.fail("changed", "the changes in "+to, err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 }), nil
}

// tip is a commit and the ref that leads to it.
type tip struct{ sha, ref string }

// pushBase is what the push of a branch is compared with.
func (c *clone) pushBase(ctx context.Context, ev tgr.Event) (string, error) {
	if ev.BaseSHA != "" && !zeroSHA(ev.BaseSHA) {
		// Some servers refuse a commit that a forced push left behind; then it is as if the branch were new.
		err := c.need(ctx, ev.BaseSHA, "")
		if err == nil || codeOfGit(err) != tgr.NotFound {
			return ev.BaseSHA, err
		}
	}
	main := branchRef(ev.Repo.DefaultBranch)
	if main == "" || ev.Ref == main {
		return emptyTree, nil
	}
	sha, err := c.fetchRef(ctx, main)
	if err != nil && codeOfGit(err) == tgr.NotFound {
		return emptyTree, nil // the first push of the repository is of another branch
	}
	if err != nil {
		return "", err
	}
	return c.ancestor(ctx, tip{sha, main}, tip{ev.SHA, ev.Ref})
}

// ancestor finds where two commits parted, and fetches history until it is found. Of histories that have nothing in
// common it is a itself. The lock is held.
func (c *clone) ancestor(ctx context.Context, a, b tip) (string, error) {
	for _, depth := range []string{"", "--depth=50", "--depth=1000", "--unshallow"} {
		switch {
		case depth == "":
			if !c.has(ctx, a.sha) || !c.has(ctx, b.sha) {
				continue // both come with the first fetch
			}
		case !c.shallow() && c.has(ctx, a.sha) && c.has(ctx, b.sha):
			return a.sha, nil // all of history is here, and no common ancestor in it
		default:
			if !c.shallow() && depth == "--unshallow" {
				depth = "--no-tags"
			}
			if err := c.fetch(ctx, depth, "+"+a.sha+":"+keepRef(a.sha, a.ref), "+"+b.sha+":"+keepRef(b.sha, b.ref)); err != nil {
				return "", err
			}
		}
		out, err := c.git(ctx, "merge-base", a.sha, b.sha)
		if sha := strings.TrimSpace(string(out)); err == nil && shaPattern().MatchString(sha) {
			return sha, nil
		}
	}
	return a.sha, nil
}
