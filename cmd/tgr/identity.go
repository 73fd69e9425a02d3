package main

import (
	"context"
	"strings"
	"sync"

	"github.com/terraphim/tgr"
)

// maxIdentities bounds what is remembered of repositories.
const maxIdentities = 10_000

// identities holds the names of repositories in payloads against their ids. Code is fetched by name, and secrets, caches and
// groups are found by id: a payload that has the one of its author's repository and the other of somebody else's would bring
// them together. It is safe for concurrent use.
type identities struct {
	ask func(ctx context.Context, repo string) (int64, error) // GitHub

	mu    sync.Mutex
	known map[int64]string
}

// check asks GitHub once for each id and name. Its error is tgr.Invalid where they do not fit, and tgr.NotFound where GitHub shows
// no such repository.
func (i *identities) check(ctx context.Context, repo tgr.Repo) error {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	name, ok := i.known[repo.ID]
	i.mu.Unlock()
	if ok && strings.EqualFold(name, repo.FullName) {
		return nil
	}
	id, err := i.ask(ctx, repo.FullName)
	switch {
	case err != nil:
		return err
	case id != repo.ID:
		return tgr.Errorf("repository", tgr.Invalid, "the webhook says that repository %d is %s, and GitHub that this is %d: nothing of it runs", repo.ID, repo.FullName, id)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.known == nil || len(i.known) >= maxIdentities {
		i.known = map[int64]string{}
	}
	i.known[repo.ID] = repo.FullName
	return nil
}
