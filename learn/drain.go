package learn

import (
	"cmp"
	"hash/fnv"
	"slices"
	"strings"
)

// Drain groups log lines into templates with a tree of fixed depth (He, Zhu, Zheng, Lyu: Drain, ICWS 2017): the number of a
// line's words, then its first two words, then the most similar template of that leaf. The levels above the leaves are one
// map here, as their depth is fixed. What it knows follows from the lines and their order alone.
type drain struct {
	leaves map[leaf][]*template // in the order of birth
	byID   map[uint64]*template
	limit  int
	born   int64
}

// leaf is the path through the tree.
type leaf struct {
	words         int
	first, second string
}

// template is a line whose varying words are wildcard.
type template struct {
	ID    uint64    `json:"id"` // of the first line that it stood for
	Words []string  `json:"w"`
	Path  [2]string `json:"p"`
	Born  int64     `json:"b"`           // counts the templates of a repository: their order in a leaf
	Last  int64     `json:"l"`           // seq of the last record that had it
	Good  int       `json:"g,omitempty"` // successful steps that printed it
	Bad   int       `json:"f,omitempty"` // failed steps that did
}

const (
	wildcard   = "<*>"
	similarity = 0.5  // of the words of a line that a template must share
	exactly    = 0.95 // of one that tells of a failure: its words are what tells failures apart
	maxLeaf    = 64   // templates: what bounds the time for a line, whatever the lines are
)

func newDrain(limit int) *drain {
	return &drain{leaves: map[leaf][]*template{}, byID: map[uint64]*template{}, limit: limit}
}

// add finds the template of a masked line, or makes it. changed: its words are not what they were.
// gone is a template that made room for a new one, 0 for none.
func (d *drain) add(words []string, seq int64) (t *template, changed bool, gone uint64) {
	key := pathOf(words)
	var best *template
	most := -1.0
	for _, t := range d.leaves[key] {
		if s := similar(t.Words, words); s > most {
			best, most = t, s
		}
	}
	need := similarity
	if alarming(words) {
		need = exactly
	}
	if best != nil && most >= need {
		for i, w := range words {
			if best.Words[i] != w && best.Words[i] != wildcard {
				best.Words[i] = wildcard
				changed = true
			}
		}
		best.Last = seq
		return best, changed, 0
	}
	id := hashOf(words...)
	for d.byID[id] != nil {
		id++
	}
	t = &template{ID: id, Words: slices.Clone(words), Path: [2]string{key.first, key.second}, Born: d.born, Last: seq}
	d.born++
	if len(d.leaves[key]) >= maxLeaf {
		old := slices.MinFunc(d.leaves[key], func(a, b *template) int { return cmp.Compare(a.Last, b.Last) })
		gone = old.ID
		d.remove(old)
	}
	d.insert(t)
	return t, true, gone
}

func (d *drain) insert(t *template) {
	key := leaf{len(t.Words), t.Path[0], t.Path[1]}
	d.leaves[key] = append(d.leaves[key], t)
	d.byID[t.ID] = t
}

// trim forgets the templates that were seen least recently, once there are too many, and returns them.
func (d *drain) trim() []uint64 {
	gone := oldest(d.byID, d.limit, func(t *template) int64 { return t.Last })
	for _, id := range gone {
		d.remove(d.byID[id])
	}
	return gone
}

func (d *drain) remove(t *template) {
	key := leaf{len(t.Words), t.Path[0], t.Path[1]}
	if d.leaves[key] = slices.DeleteFunc(d.leaves[key], func(o *template) bool { return o == t }); len(d.leaves[key]) == 0 {
		delete(d.leaves, key)
	}
	delete(d.byID, t.ID)
}

// pathOf is the leaf for a line. Words that hold something masked vary, and would make a leaf each.
func pathOf(words []string) leaf {
	key := leaf{words: len(words)}
	for i, into := range []*string{&key.first, &key.second} {
		if i < len(words) {
			if *into = words[i]; strings.Contains(words[i], "<") {
				*into = wildcard
			}
		}
	}
	return key
}

// similar is the share of words that are equal. One word is similar to itself alone.
func similar(template, words []string) float64 {
	same := 0
	for i, w := range template {
		if w == words[i] {
			same++
		}
	}
	if len(words) == 1 && same == 0 {
		return 0
	}
	return float64(same) / float64(len(words))
}

func (t *template) String() string { return strings.Join(t.Words, " ") }

func hashOf(parts ...string) uint64 {
	h := fnv.New64a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return h.Sum64() >> 1 // JSON readers and SQL have signed numbers
}
