"What people use: classifier, check, page, report, command line"
