package workflow

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/terraphim/tgr/expr"
)

// flat is a combination whose values are small numbers.
type flat map[string]int

// referenceMatrix expands a matrix by the words of the documentation, without regard to cost.
func referenceMatrix(keys []string, vectors map[string][]int, include, exclude []flat) []flat {
	combos := []flat{{}}
	for _, k := range keys {
		var next []flat
		for _, c := range combos {
			for _, v := range vectors[k] {
				n := flat{k: v}
				for a, b := range c {
					n[a] = b
				}
				next = append(next, n)
			}
		}
		combos = next
	}
	if len(keys) == 0 {
		combos = nil
	}
	combos = slices.DeleteFunc(combos, func(c flat) bool {
		return slices.ContainsFunc(exclude, func(e flat) bool {
			for k, v := range e {
				if c[k] != v {
					return false
				}
			}
			return true
		})
	})
	original := len(combos)
	for _, in := range include {
		added := false
		for _, c := range combos[:original] {
			overwrites := false
			for k, v := range in {
				if slices.Contains(keys, k) && c[k] != v {
					overwrites = true
				}
			}
			if overwrites {
				continue
			}
			added = true
			for k, v := range in {
				c[k] = v
			}
		}
		if !added {
			own := flat{}
			for k, v := range in {
				own[k] = v
			}
			combos = append(combos, own)
		}
	}
	return combos
}

func TestMatrixProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		number := rapid.IntRange(0, 3)
		keys := rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 3, rapid.ID).Draw(t, "keys")
		vectors := map[string][]int{}
		for _, k := range keys {
			vectors[k] = rapid.SliceOfNDistinct(number, 1, 4, rapid.ID).Draw(t, k)
		}
		entry := func(names []string) *rapid.Generator[flat] {
			return rapid.Custom(func(t *rapid.T) flat {
				return rapid.MapOfN(rapid.SampledFrom(names), number, 1, 3).Draw(t, "entry")
			})
		}
		include := rapid.SliceOfN(entry([]string{"a", "b", "c", "x", "y"}), 0, 4).Draw(t, "include")
		var exclude []flat
		if len(keys) == 3 {
			exclude = rapid.SliceOfN(entry(keys), 0, 3).Draw(t, "exclude")
		}
		var b strings.Builder
		b.WriteByte('{')
		for _, k := range keys {
			v, _ := json.Marshal(vectors[k])
			fmt.Fprintf(&b, "%q:%s,", k, v)
		}
		in, _ := json.Marshal(append([]flat{}, include...))
		ex, _ := json.Marshal(append([]flat{}, exclude...))
		fmt.Fprintf(&b, `"include":%s,"exclude":%s}`, in, ex)
		v, err := expr.FromJSON([]byte(b.String()))
		if err != nil {
			t.Fatal(err)
		}
		var got []flat
		combos, merr := expandMatrix(v)
		for _, c := range combos {
			text, _ := expr.Obj(c).MarshalJSON()
			var f flat
			if err := json.Unmarshal(text, &f); err != nil {
				t.Fatal(err)
			}
			got = append(got, f)
		}
		want := referenceMatrix(keys, vectors, include, exclude)
		if (merr != nil) != (len(want) == 0) {
			t.Fatalf("%s: got %v, want %v", b.String(), merr, want)
		}
		if diff := cmp.Diff(want, got); diff != "" && merr == nil {
			t.Fatalf("%s (-want +got)\n%s", b.String(), diff)
		}
	})
}

// TestPatternProperties compares patterns with regular expressions written for the same words.
func TestPatternProperties(t *testing.T) {
	pieces := []struct{ pattern, regexp string }{
		{"a", "a"}, {"b", "b"}, {"/", "/"}, {"*", "[^/]*"}, {"a?", "a?"}, {"b+", "b+"}, {"[ab]", "[ab]"}, {`\*`, `\*`}, {"-**", "-.*"},
	}
	rapid.Check(t, func(t *rapid.T) {
		pattern, re := "", "^"
		for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(pieces)-1), 0, 8).Draw(t, "pieces") {
			if strings.HasSuffix(pattern, "*") && !strings.HasSuffix(pattern, `\*`) && strings.HasPrefix(pieces[i].pattern, "*") {
				continue // two stars in a row are another piece
			}
			pattern += pieces[i].pattern
			re += pieces[i].regexp
		}
		name := rapid.StringOfN(rapid.SampledFrom([]rune("ab/*-")), 0, 12, -1).Draw(t, "name")
		p, err := compilePattern(pattern)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := p.match(name), regexp.MustCompile(re+"$").MatchString(name); got != want {
			t.Fatalf("%q matches %q: got %v, want %v", pattern, name, got, want)
		}
	})
}

// TestCronProperties compares Next with a clock that is moved on by minutes, in zones that change their clocks by an
// hour, by half an hour, and at midnight.
func TestCronProperties(t *testing.T) {
	type change struct {
		zone        string
		month, date int
	}
	changes := []change{
		{"Europe/Berlin", 3, 29}, {"Europe/Berlin", 10, 25},
		{"Australia/Lord_Howe", 4, 5}, {"Australia/Lord_Howe", 10, 4},
		{"America/Havana", 3, 8}, {"America/Havana", 11, 1},
	}
	rapid.Check(t, func(t *rapid.T) {
		field := func(name string, lo, hi int) string {
			a := rapid.IntRange(lo, hi).Draw(t, name)
			b := rapid.IntRange(a, hi).Draw(t, name)
			return rapid.SampledFrom([]string{"*", fmt.Sprint(a), fmt.Sprintf("%d-%d", a, b), fmt.Sprintf("%d,%d", a, b), "*/" + fmt.Sprint(max(a, 1))}).Draw(t, name)
		}
		line := strings.Join([]string{field("minute", 0, 59), field("hour", 0, 23), field("day", 1, 31), "*", field("weekday", 0, 6)}, " ")
		c, err := ParseCron(line)
		if err != nil {
			t.Fatal(err)
		}
		at := rapid.SampledFrom(changes).Draw(t, "change")
		zone, err := time.LoadLocation(at.zone)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Date(2026, time.Month(at.month), at.date-2, 0, 0, 0, 0, zone).Add(time.Duration(rapid.IntRange(0, 4*24*60).Draw(t, "start")) * time.Minute)
		want := start.Add(time.Minute)
		for end := start.AddDate(0, 0, 40); want.Before(end) && !due(c, want); {
			want = want.Add(time.Minute)
		}
		if got := c.Next(start); due(c, want) && !got.Equal(want) {
			t.Fatalf("%s after %v: got %v, want %v", line, start, got, want)
		}
	})
}

// due tells whether a line is due in the minute that begins at t. A line for certain hours is due once for each time
// that a clock could show: when it shows it first, or when it goes on after it skipped it.
func due(c *Cron, t time.Time) bool {
	matches := func(t time.Time) bool {
		return c.minute&(1<<t.Minute()) != 0 && c.hour&(1<<t.Hour()) != 0 && c.month&(1<<t.Month()) != 0 && c.dayMatches(t)
	}
	if c.hour == everyHour {
		return matches(t)
	}
	_, now := t.Zone()
	_, then := t.Add(-time.Minute).Zone()
	for skipped := time.Duration(then-now) * time.Second; skipped < 0; skipped += time.Minute {
		if matches(t.Add(skipped).In(time.FixedZone("", now))) {
			return true
		}
	}
	_, earlier := t.Add(-2 * time.Hour).Zone()
	before := t.Add(-time.Duration(earlier-now) * time.Second)
	_, offset := before.Zone()
	return matches(t) && (earlier <= now || offset != earlier)
}

// TestIDProperties: ids that are handed out are valid, differ, and are never one that was claimed.
func TestIDProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := ids{}
		seen := map[string]bool{}
		for _, text := range rapid.SliceOfN(rapid.SampledFrom([]string{"__run", "__RUN", "__run_2", "__a/b", "__a_b", "__" + strings.Repeat("x", 120)}), 1, 30).Draw(t, "texts") {
			id := s.invent(text)
			if !validID(id) && len(id) != maxID {
				t.Fatalf("%q is not valid", id)
			}
			if len(id) > maxID || seen[strings.ToLower(id)] {
				t.Fatalf("%q is too long or was handed out twice", id)
			}
			seen[strings.ToLower(id)] = true
		}
	})
}
