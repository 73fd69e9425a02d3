package workflow

import (
	"fmt"
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
		{"0 12 4 11 *", "America/Sao_Paulo", "2018-11-03 12:00 -0300", "2018-11-04 12:00 -0200"}, // without a midnight
		{"0 0 30 2 *", "UTC", "2026-03-01 00:00 +0000", ""},
		{"0 0 31 * *", "UTC", "2026-04-01 00:00 +0000", "2026-05-31 00:00 +0000"},
		{"0 0 29 2 *", "UTC", "2096-03-01 00:00 +0000", "2104-02-29 00:00 +0000"}, // 2100 is no leap year
		{"0 9 * * *", "Asia/Kathmandu", "2026-03-01 00:00 +0545", "2026-03-01 09:00 +0545"},
		// On 29 March Berlin's clocks go from 02:00 to 03:00.
		{"30 2 * * *", "Europe/Berlin", "2026-03-28 12:00 +0100", "2026-03-29 03:00 +0200"},
		{"*/10 2 * * *", "Europe/Berlin", "2026-03-29 01:00 +0100", "2026-03-29 03:00 +0200"},
		{"*/10 2 * * *", "Europe/Berlin", "2026-03-29 03:00 +0200", "2026-03-30 02:00 +0200"},
		{"0 2,3 * * *", "Europe/Berlin", "2026-03-29 03:00 +0200", "2026-03-30 02:00 +0200"},
		{"30 * * * *", "Europe/Berlin", "2026-03-29 01:30 +0100", "2026-03-29 03:30 +0200"},
		// On 25 October they go from 03:00 to 02:00.
		{"30 2 * * *", "Europe/Berlin", "2026-10-24 12:00 +0200", "2026-10-25 02:30 +0200"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25 02:30 +0200", "2026-10-26 02:30 +0100"},
		{"30 2 * * *", "Europe/Berlin", "2026-10-25 02:00 +0100", "2026-10-26 02:30 +0100"},
		{"15 1-4 * * *", "Europe/Berlin", "2026-10-25 02:15 +0200", "2026-10-25 03:15 +0100"},
		{"30 * * * *", "Europe/Berlin", "2026-10-25 02:30 +0200", "2026-10-25 02:30 +0100"},
		// There it is half an hour.
		{"15 2 * * *", "Australia/Lord_Howe", "2026-10-04 01:00 +1030", "2026-10-04 02:30 +1100"},
		{"45 1 * * *", "Australia/Lord_Howe", "2026-04-05 01:00 +1100", "2026-04-05 01:45 +1100"},
		{"45 1 * * *", "Australia/Lord_Howe", "2026-04-05 01:45 +1100", "2026-04-06 01:45 +1030"},
		{"0 0 4 11 *", "America/Sao_Paulo", "2018-11-03 12:00 -0300", "2018-11-04 01:00 -0200"},
		{"0 12 30 12 *", "Pacific/Apia", "2011-12-29 00:00 -1000", "2011-12-31 00:00 +1400"}, // which had no 30th
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

// A line for one time of the day is due once on each day of a year, whatever clocks do in it.
func TestCronOnceADay(t *testing.T) {
	for _, zone := range []string{"UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Asia/Beirut"} {
		for hour := range 24 {
			s := Schedule{Cron: fmt.Sprintf("30 %d * * *", hour), Timezone: zone}
			loc, err := time.LoadLocation(zone)
			if err != nil {
				t.Fatal(err)
			}
			at, end, days := time.Date(2025, 12, 31, 23, 59, 0, 0, loc), time.Date(2026, 12, 31, 23, 59, 0, 0, loc), map[string]bool{}
			for n := 1; ; n++ {
				if at, err = s.Next(at); err != nil {
					t.Fatal(err)
				}
				if at.After(end) {
					if n != 366 || len(days) != 365 {
						t.Errorf("%s in %s: due %d times on %d days of 2026", s.Cron, zone, n-1, len(days))
					}
					break
				}
				days[at.In(loc).Format(time.DateOnly)] = true
			}
		}
	}
}

func TestScheduleNextRefuses(t *testing.T) {
	for _, s := range []Schedule{{Cron: "@daily"}, {Cron: "0 0 * * *", Timezone: "Mars/Phobos"}} {
		if at, err := s.Next(time.Now()); err == nil {
			t.Errorf("%+v is due at %s", s, at)
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
