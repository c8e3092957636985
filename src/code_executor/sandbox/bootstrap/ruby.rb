# Required (ruby -r) into an interpreter that is started ahead. It waits here for its job and then
# returns, and Ruby goes on to load /work/main.rb as it always does. What the job is: init/init.c.
#
# Ruby has opened main.rb before and has looked at its first line, which was a blank then: the open
# file is found and rewound, so that what is parsed is the program, from its first byte.
lambda do
  go = IO.for_fd(3, 'r+b')
  go.write("\0") # ready
  go.flush
  size = go.gets("\0").to_i
  job = go.read(size)
  go.close
  exit!(0) if size.zero? || job.to_s.bytesize < size
  count, *rest = job.force_encoding(Encoding::UTF_8).split("\0", -1)[0..-2]
  ARGV.replace(rest.shift(count.to_i))
  rest.each do |pair|
    name, value = pair.split('=', 2)
    ENV[name] = value if ENV[name] != value
  end
  ObjectSpace.each_object(File) { |file| file.rewind if !file.closed? && file.path == 'main.rb' }
end.call
# This file becomes a loaded feature only when it returns: out with it as the program is compiled.
TracePoint.new(:script_compiled) do |point|
  point.disable
  $LOADED_FEATURES.delete(__FILE__)
end.enable
