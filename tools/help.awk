# Lists the targets of a Makefile, `name: ... ## purpose`, in 80 columns: those of `start` first, at most six, then each
# group, whose heading is a comment `# --- name ---`.

function wrapped(name, purpose,    words, count, line, i) {
	count = split(purpose, words, " ")
	line = sprintf("  make %-11s", name)
	for (i = 1; i <= count; i++) {
		if (length(line) + 1 + length(words[i]) > 79) {
			print line
			line = sprintf("  %-16s", "")
		}
		line = line " " words[i]
	}
	print line
}

/^# --- .* ---$/ {
	heading = $0
	gsub(/^# --- | ---$/, "", heading)
}

/^[a-z][a-z-]*:.*## / {
	name = $0
	sub(/:.*/, "", name)
	purpose[name] = $0
	sub(/^[^#]*## /, "", purpose[name])
	order[++targets] = name
	group[name] = heading
}

END {
	print "To start with:"
	count = split(start, first, " ")
	for (i = 1; i <= count && shown < 6; i++)
		if (first[i] in purpose) {
			wrapped(first[i], purpose[first[i]])
			shown++
		}
	for (i = 1; i <= targets; i++) {
		if (group[order[i]] != before) print "\n" group[order[i]]
		before = group[order[i]]
		wrapped(order[i], purpose[order[i]])
	}
}
