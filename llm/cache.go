package llm

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// cache keeps answers that were checked, by the hash of everything that led to them, and for a while the reasons of
// those that were not. With a folder it survives restarts. Safe for concurrent use.
type cache struct {
	dir  string // "": memory only
	most int    // answers in memory, and files in the folder

	mu     sync.Mutex
	got    map[string]cached
	failed map[string]failure
	writes int
}

// cached is an answer in the cache.
type cached struct {
	Text         string  `json:"text"`
	PromptTokens int     `json:"prompt_tokens"`
	OutputTokens int     `json:"output_tokens"`
	Cost         float64 `json:"cost"`
}

type failure struct {
	fault *Fault
	until time.Time
}

const (
	cacheMost   = 2000
	failureKept = 5 * time.Minute
	failureMost = 1000
)

func newCache(dir string) *cache {
	return &cache{dir: dir, most: cacheMost, got: map[string]cached{}, failed: map[string]failure{}}
}

// get finds an answer, or the reason why there will be none now.
func (c *cache) get(key string, now time.Time) (cached, *Fault, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.got[key]; ok {
		return a, nil, true
	}
	if f, ok := c.failed[key]; ok {
		if now.Before(f.until) {
			return cached{}, f.fault, true
		}
		delete(c.failed, key)
	}
	if c.dir == "" {
		return cached{}, nil, false
	}
	data, err := os.ReadFile(filepath.Join(c.dir, key+".json"))
	var a cached
	if err != nil || json.Unmarshal(data, &a) != nil {
		return cached{}, nil, false
	}
	c.keep(key, a)
	return a, nil, true
}

func (c *cache) keep(key string, a cached) {
	if len(c.got) >= c.most {
		clear(c.got) // simpler than an order of eviction; the folder has them still
	}
	c.got[key] = a
}

// put keeps an answer. A folder that cannot be written costs speed, no more.
func (c *cache) put(key string, a cached) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(key, a)
	if c.dir == "" {
		return nil
	}
	data, err := json.Marshal(a)
	if err != nil {
		return err
	}
	if c.writes++; c.writes%100 == 1 {
		c.prune()
	}
	return writeFile(c.dir, key+".json", data)
}

// fail keeps a reason.
func (c *cache) fail(key string, f *Fault, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failed) >= failureMost {
		clear(c.failed)
	}
	c.failed[key] = failure{f, now.Add(failureKept)}
}

// prune deletes the oldest files beyond the bound.
func (c *cache) prune() {
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) <= c.most {
		return
	}
	age := func(e os.DirEntry) int64 {
		info, err := e.Info()
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return int(min(max(age(a)-age(b), -1), 1)) })
	for _, e := range entries[:len(entries)-c.most] {
		_ = os.Remove(filepath.Join(c.dir, e.Name())) // the next time will find it again
	}
}

// writeFile puts a file in its place whole, readable by the server alone.
func writeFile(dir, name string, data []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // after the rename there is nothing to remove
	_, err = f.Write(data)
	if err1 := f.Close(); err == nil {
		err = err1
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, name))
}
