package workflow

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"
)

// MinCronInterval is the shortest time between two runs of a schedule.
const MinCronInterval = 5 * time.Minute

// Cron is a parsed line of POSIX cron: minute, hour, day of the month, month, day of the week. Each field is a set
// of bits.
type Cron struct {
	minute, hour, day, month, weekday uint64
	anyDay, anyWeekday                bool // written as *
}

// cronField is one field's name and range.
type cronField struct {
	name   string
	lo, hi int
	names  string // three letters each, from lo on
}

// ParseCron reads the five fields of a cron line: *, values, ranges, lists and steps; names of months and weekdays.
// 7 is Sunday too. What is wrong is named with its field.
func ParseCron(line string) (*Cron, error) {
	fields := strings.Fields(line)
	if len(fields) != 5 || len(line) > 500 {
		return nil, fmt.Errorf("'%s' is not a cron line: expected five fields: minute, hour, day of the month, month, day of the week", clip(line))
	}
	c := &Cron{anyDay: strings.HasPrefix(fields[2], "*"), anyWeekday: strings.HasPrefix(fields[4], "*")}
	for i, f := range []struct {
		field cronField
		to    *uint64
	}{
		{cronField{"minute", 0, 59, ""}, &c.minute},
		{cronField{"hour", 0, 23, ""}, &c.hour},
		{cronField{"day of the month", 1, 31, ""}, &c.day},
		{cronField{"month", 1, 12, "janfebmaraprmayjunjulaugsepoctnovdec"}, &c.month},
		{cronField{"day of the week", 0, 7, "sunmontuewedthufrisat"}, &c.weekday},
	} {
		set, err := f.field.parse(fields[i])
		if err != nil {
			return nil, fmt.Errorf("'%s' is not a cron line: the %s '%s' %w", clip(line), f.field.name, fields[i], err)
		}
		*f.to = set
	}
	if c.weekday&(1<<7) != 0 {
		c.weekday |= 1
	}
	return c, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return strings.ToValidUTF8(s[:80], "") + "…"
	}
	return s
}

func (f *cronField) parse(s string) (uint64, error) {
	var set uint64
	for part := range strings.SplitSeq(s, ",") {
		span, stepText, stepped := strings.Cut(part, "/")
		step := 1
		if stepped {
			n, err := strconv.Atoi(stepText)
			if err != nil || n < 1 || n > f.hi+1 {
				return 0, fmt.Errorf("has the step '%s', which is not a number between 1 and %d", stepText, f.hi+1)
			}
			step = n
		}
		lo, hi, err := f.span(span, stepped)
		if err != nil {
			return 0, err
		}
		for v := lo; v <= hi; v += step {
			set |= 1 << v
		}
	}
	return set, nil
}

func (f *cronField) span(s string, stepped bool) (lo, hi int, err error) {
	if s == "*" {
		hi = f.hi
		if f.name == "day of the week" {
			hi = 6
		}
		return f.lo, hi, nil
	}
	first, last, isRange := strings.Cut(s, "-")
	if lo, err = f.value(first); err != nil {
		return 0, 0, err
	}
	switch {
	case isRange:
		if hi, err = f.value(last); err != nil {
			return 0, 0, err
		}
	case stepped:
		hi = f.hi
	default:
		hi = lo
	}
	if hi < lo {
		return 0, 0, fmt.Errorf("has a range that ends before it begins")
	}
	return lo, hi, nil
}

func (f *cronField) value(s string) (int, error) {
	if len(s) == 3 && f.names != "" {
		if i := strings.Index(f.names, strings.ToLower(s)); i >= 0 && i%3 == 0 {
			return f.lo + i/3, nil
		}
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < f.lo || n > f.hi || s[0] == '+' {
		return 0, fmt.Errorf("is not between %d and %d", f.lo, f.hi)
	}
	return n, nil
}

// Next is the first time after t, in t's location, at which the line is due. It is zero if there is none in the next
// eight years, as for the 30th of February. A time that the clock skips is due when the clock goes on, and one that the
// clock shows twice is due the first time; but a line for every hour is due in each hour that passes, whatever the clock does.
//
// https://docs.github.com/en/actions/reference/workflows-and-actions/events-that-trigger-workflows#schedule
func (c *Cron) Next(t time.Time) time.Time {
	if c.hour == everyHour {
		return c.search(t)
	}
	for shown := onClock(t); ; {
		if shown = c.search(shown); shown.IsZero() {
			return shown
		}
		if at := firstAt(shown, t.Location()); at.After(t) {
			return at
		}
	}
}

// everyHour is the field *.
const everyHour = 1<<24 - 1

// onClock is what a clock in t's location shows, as a time of UTC, which skips and repeats nothing.
func onClock(t time.Time) time.Time {
	return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), 0, 0, time.UTC)
}

// firstAt is when a clock shows a time first, or goes on after it has skipped it.
func firstAt(shown time.Time, loc *time.Location) time.Time {
	at := time.Date(shown.Year(), shown.Month(), shown.Day(), shown.Hour(), shown.Minute(), 0, 0, loc)
	start, end := at.ZoneBounds()
	switch {
	case onClock(at).After(shown): // skipped: at is the same time by the offset of before
		return start
	case onClock(at).Before(shown): // skipped: at is the same time by the offset of after
		return end
	case start.IsZero():
		return at
	}
	_, before := start.Add(-time.Second).Zone()
	_, now := at.Zone()
	if first := at.Add(time.Duration(now-before) * time.Second); first.Before(start) {
		return first
	}
	return at
}

// search is the first time after t that the fields match, minute by minute of the time that passes.
func (c *Cron) search(t time.Time) time.Time {
	t = t.Truncate(time.Minute).Add(time.Minute)
	end := t.AddDate(8, 0, 1)
	for t.Before(end) {
		switch {
		case c.month&(1<<t.Month()) == 0:
			t = midnight(t, t.Month()+1, 1)
		case !c.dayMatches(t):
			t = midnight(t, t.Month(), t.Day()+1)
		case c.hour&(1<<t.Hour()) == 0:
			t = t.Add(time.Duration(60-t.Minute()) * time.Minute)
		case c.minute&(1<<t.Minute()) == 0:
			t = t.Add(time.Minute)
		default:
			return t
		}
	}
	return time.Time{}
}

// midnight is the beginning of a later day than t's. Where the clock skips midnight it may be an hour off, but never
// before t.
func midnight(t time.Time, month time.Month, day int) time.Time {
	next := time.Date(t.Year(), month, day, 0, 0, 0, 0, t.Location())
	if !next.After(t) {
		return t.Add(time.Hour)
	}
	return next
}

// dayMatches follows cron: if both days are restricted, either is enough.
func (c *Cron) dayMatches(t time.Time) bool {
	day, weekday := c.day&(1<<t.Day()) != 0, c.weekday&(1<<t.Weekday()) != 0
	if c.anyDay || c.anyWeekday {
		return day && weekday
	}
	return day || weekday
}

// Shortest is the shortest time between two runs, as far as minutes tell: one hour at most.
func (c *Cron) Shortest() time.Duration {
	if bits.OnesCount64(c.minute) < 2 {
		return time.Hour
	}
	shortest, first, last := 60, bits.TrailingZeros64(c.minute), -1
	for m := range 60 {
		if c.minute&(1<<m) == 0 {
			continue
		}
		if last >= 0 {
			shortest = min(shortest, m-last)
		}
		last = m
	}
	if bits.OnesCount64(c.hour) > 1 { // around the hour
		shortest = min(shortest, first+60-last)
	}
	return time.Duration(shortest) * time.Minute
}

// Next is the first time after t at which s is due, by the clock of its time zone; zero as of Cron. An error names what
// Parse has refused too.
func (s *Schedule) Next(t time.Time) (time.Time, error) {
	c, err := ParseCron(s.Cron)
	if err != nil {
		return time.Time{}, err
	}
	loc, err := time.LoadLocation(s.Timezone) // "" is UTC
	if err != nil {
		return time.Time{}, fmt.Errorf("'%s' is not the name of a time zone: %w", clip(s.Timezone), err)
	}
	return c.Next(t.In(loc)).UTC(), nil
}
