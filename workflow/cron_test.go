package workflow

import (
	"strings"
	"testing"
	"time"
)

func TestCronNext(t *testing.T) {
	const layout = "2006-01-02 15:04 -0700"
	for _, tt := range []struct{ line, zone, after, want string }{
		{"*/15 * * * *", "UTC", "2026-03-01 10:00 +0000", "2026-03-01 10:15 +0000"},
		{"0 0 1 1 *", "UTC", "2026-03-01 10:00 +0000", "2027-01-01 00:00 +0000"},
		{"30 5,17 * * *", "UTC", "2026-03-01 05:30 +0000", "2026-03-01 17:30 +0000"},
		{"0 12 * * 1-5", "UTC", "2026-03-06 13:00 +0000", "2026-03-09 12:00 +0000"},
		{"0 12 * * MON", "UTC", "2026-03-03 13:00 +0000", "2026-03-09 12:00 +0000"},
		{"0 12 * jun sun", "UTC", "2026-03-03 13:00 +0000", "2026-06-07 12:00 +0000"},
		{"0 12 * * 7", "UTC", "2026-03-03 13:00 +0000", "2026-03-08 12:00 +0000"},
		{"0 12 13 * 5", "UTC", "2026-03-01 00:00 +0000", "2026-03-06 12:00 +0000"}, // either day is enough
		{"0 12 */2 * 1", "UTC", "2026-03-01 13:00 +0000", "2026-03-09 12:00 +0000"},
		{"0 0 29 2 *", "UTC", "2026-03-01 00:00 +0000", "2028-02-29 00:00 +0000"},
		{"10-20/5 * * * *", "UTC", "2026-03-01 10:15 +0000", "2026-03-01 10:20 +0000"},
		{"20/20 * * * *", "UTC", "2026-03-01 10:41 +0000", "2026-03-01 11:20 +0000"},
		{"0 9 * * *", "Europe/Berlin", "2026-03-28 09:00 +0100", "2026-03-29 09:00 +0200"},
		{"30 2 * * *", "Europe/Berlin", "2026-03-28 12:00 +0100", "2026-03-30 02:30 +0200"},      // 02:30 does not exist on the 29th
		{"0 12 4 11 *", "America/Sao_Paulo", "2018-11-03 12:00 -0300", "2018-11-04 12:00 -0200"}, // without a midnight
		{"30 2 * * *", "Europe/Berlin", "2026-10-25 02:30 +0200", "2026-10-25 02:30 +0100"},      // twice
		{"0 0 30 2 *", "UTC", "2026-03-01 00:00 +0000", ""},
	} {
		c, err := ParseCron(tt.line)
		if err != nil {
			t.Fatal(err)
		}
		loc, err := time.LoadLocation(tt.zone)
		if err != nil {
			t.Fatal(err)
		}
		after, err := time.Parse(layout, tt.after)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if next := c.Next(after.In(loc)); !next.IsZero() {
			got = next.Format(layout)
		}
		if got != tt.want {
			t.Errorf("%s after %s in %s: got %s, want %s", tt.line, tt.after, tt.zone, got, tt.want)
		}
	}
}

func TestCronErrors(t *testing.T) {
	for _, tt := range []struct{ line, want string }{
		{"", "expected five fields"},
		{"* * * *", "expected five fields"},
		{"@daily", "expected five fields"},
		{"60 * * * *", "the minute '60' is not between 0 and 59"},
		{"* 24 * * *", "the hour '24' is not between 0 and 23"},
		{"* * 0 * *", "the day of the month '0' is not between 1 and 31"},
		{"* * * 13 *", "the month '13' is not between 1 and 12"},
		{"* * * * 8", "the day of the week '8' is not between 0 and 7"},
		{"* * * * foo", "the day of the week 'foo' is not between 0 and 7"},
		{"5-1 * * * *", "the minute '5-1' has a range that ends before it begins"},
		{"*/0 * * * *", "the minute '*/0' has the step '0'"},
		{"+1 * * * *", "is not between"},
		{"1,,2 * * * *", "is not between"},
	} {
		if _, err := ParseCron(tt.line); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: got %v, want %s", tt.line, err, tt.want)
		}
	}
}

func TestCronShortest(t *testing.T) {
	for line, want := range map[string]int{"* * * * *": 1, "*/5 * * * *": 5, "0 * * * *": 60, "0,58 * * * *": 2, "0,58 3 * * *": 58, "10,20 * * * *": 10} {
		c, err := ParseCron(line)
		if err != nil {
			t.Fatal(err)
		}
		if got := int(c.Shortest().Minutes()); got != want {
			t.Errorf("%s: got %d minutes, want %d", line, got, want)
		}
	}
}
